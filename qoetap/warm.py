"""Compiling kernels before a run, one process per core, so that the first start is short and the rate means something.

`python -m qoetap.warm UNIT...` is the child: it calls the kernels of a unit with nothing to do, numba keeps them. Which
unit is next, all children read from one pipe, so that none is idle while there is one left: a byte is its position.
A unit is one of OTHERS, "render.render", or "loop.stage_" and the name of a detector.
"""

import contextlib
import gc
import os
import subprocess
import sys

import numpy as np
from numba.core.codegen import JITCodeLibrary, JITCPUCodegen
from numba.core.cpu import CPUTargetOptions

import detectors as registry
from dataplane.batch import Batch
from dataplane.cache import cold, is_temporary
from dataplane.capture.merge import Merge
from dataplane.capture.pcapfile import read_stage
from dataplane.capture.ring import WALK, walk, walk_stage
from dataplane.capture.sieve import Sieve
from dataplane.chain import Chain
from dataplane.classify import new_classifier, new_rules
from dataplane.events import Events, Renderer, json_lines
from dataplane.evidence import History
from dataplane.kernels import stage_address
from dataplane.pacing import new_classes, new_pacer
from dataplane.records import FRAME, JIT, Block, rows
from dataplane.relay import Relay
from dataplane.runner import in_order, make_runners
from dataplane.shim import Shim
from dataplane.wire import decode_options
from qoetap import config

LOOP = "loop.stage_"
UNIT_SECONDS = 5  # about what one unit takes
PAGE_bytes = 4096
SMALL = 64  # rows and states: nothing is done with them
WRAPPERS = "cpython.", "cfunc."  # how numba's names of functions begin that are called from outside
GARBAGE_EVERY = 200_000  # objects made: most stay, to look through them as often as Python does is a tenth of the time


def units(names, *more):
    """What is not compiled yet for these detectors, and of `more` units; the slow first."""
    every = ["batch.decode_stage", *(LOOP + name for name in names), "render.render", "chain.go", *more]
    return cold(every) if JIT else []


def seconds(missing):
    """About how long compile_units takes."""
    return round(UNIT_SECONDS * len(missing) / min(processes(), len(missing)))


def processes():
    return len(os.sched_getaffinity(0))


def compile_units(missing):
    """Compile in child processes; what they fail to do, the run does itself."""
    if is_temporary():
        return
    command, nothing = [sys.executable, "-m", "qoetap.warm", *missing], subprocess.DEVNULL
    queue, end = os.pipe()
    os.write(end, bytes(range(len(missing))))
    os.close(end)
    with open(queue, "rb") as queue:
        children = [
            subprocess.Popen(command, stdin=queue, stdout=nothing, stderr=nothing)
            for _ in range(min(processes(), len(missing)))
        ]
    try:
        for child in children:
            child.wait()
    finally:
        for child in children:
            with contextlib.suppress(OSError):
                child.kill()


def compile_engine():
    for _ in Chain([]).over(Batch(SMALL), SMALL):
        pass
    in_order(np.empty(0, np.int64), np.empty(0, np.int64))


def compile_decode():
    Batch(SMALL).stage(decode_options(b""))


def compile_render(known):
    detector = known["flow"]
    events = rows(detector.event, 1)
    events["code"] = 1
    for _ in Renderer((detector,), json_lines).chunks(Events([(detector, events)], np.zeros((1, 2), np.int64), [], "")):
        pass


def compile_sieve():
    Sieve("", ()).sift(Block(np.zeros(1, np.uint8), rows(FRAME, 0)))


def compile_detector(detector):
    params = config.build_params(detector, config.detector_model(detector)())
    runner = make_runners(detector, params, SMALL, 1, SMALL)[0]
    runner.stage()
    runner.end(np.empty(0, np.int64), 0)


def compile_walk():
    walk(np.zeros(SMALL, np.uint8), np.zeros(SMALL, np.uint32), rows(FRAME, 0), rows(WALK, 1))
    stage_address(walk_stage)


def compile_relay():
    relay = Relay(Batch(SMALL), SMALL, 1, None)
    relay.giving_stage()
    relay.taking_stages(0, None, [])


OTHERS = {
    "chain.go": compile_engine,
    "batch.decode_stage": compile_decode,
    "pcapfile.read_stage": lambda: stage_address(read_stage),
    "sieve.mark": compile_sieve,
    "ring.walk_stage": compile_walk,
    "merge.merge": lambda: Merge(2, PAGE_bytes, 1, 0),
    "relay.give_stage": compile_relay,
    "evidence.keep": lambda: History(SMALL),
    "shim.arrive": lambda: Shim(new_pacer(new_classes(1), 1), new_classifier(new_rules(1))),
}


def make_no_wrappers():
    """Have numba leave out what it makes of each function for callers in Python and in C: two fifths of its time.

    Only kernels are called from outside, and those alone are `nogil`. This is for a process that does nothing else: to
    call any other function from Python would end it.
    """
    finalize = CPUTargetOptions.finalize

    def without(self, flags, options):
        finalize(self, flags, options)
        flags.no_cfunc_wrapper, flags.no_cpython_wrapper = True, not options.get("nogil")

    CPUTargetOptions.finalize = without


def optimize_once():
    """Have numba optimise in full only what is called from outside, into which all else is linked: an eighth less."""
    full = JITCodeLibrary._optimize_final_module

    def optimize(self):
        if any(function.name.startswith(WRAPPERS) for function in self.get_defined_functions()):
            return full(self)
        manager, builder = self._codegen._module_pass_manager(slp_vectorize=False, cost="cheap")
        manager.run(self._final_module, builder)

    JITCodeLibrary._optimize_final_module = optimize


def make_code_late():
    """Have numba make machine code of a module only when it is to be called or kept: of all that is merely linked into
    others it is never made, a sixth less. Before anything was compiled; what comes from the disk is made at once.
    """
    library, codegen = JITCodeLibrary, JITCPUCodegen
    add, finish, set_env = codegen._add_module, library._finalize_specific, codegen.set_env
    address, object_of, made = library.get_pointer_to_function, library._get_compiled_object, set()

    def make(self):
        self._ensure_finalized()
        if self not in made:
            made.add(self)
            add(self._codegen, self._final_module)
            finish(self)

    def address_in(self, name):
        self._ensure_finalized()
        if self._disable_inspection or any(function.name == name for function in self.get_defined_functions()):
            make(self)
        return address(self, name)

    def made_object(self):
        make(self)
        return object_of(self)

    def set_env_of_made(self, name, env):
        if self._engine.get_global_value_address(name):
            set_env(self, name, env)

    codegen._add_module, codegen.set_env = lambda self, module: None, set_env_of_made
    library._finalize_specific = lambda self: None
    library.get_pointer_to_function, library._get_compiled_object = address_in, made_object


def main(names):
    make_no_wrappers()
    optimize_once()
    make_code_late()
    gc.set_threshold(GARBAGE_EVERY)
    known = registry.load_all()
    while taken := os.read(sys.stdin.fileno(), 1):
        name = names[taken[0]]
        if name.startswith(LOOP):
            compile_detector(known[name.removeprefix(LOOP)])
        elif name in OTHERS:
            OTHERS[name]()
        else:
            compile_render(known)


if __name__ == "__main__":
    main(sys.argv[1:])
