"""`qoetap decode`: what is known of each packet, a line each."""

import contextlib
import io
import os

from dataplane import listing
from dataplane.batch import BATCH_ROWS, Batch, new_clock, set_clock
from dataplane.capture import CaptureError, open_capture
from dataplane.capture.sieve import blocks_of
from dataplane.kernels import Kernel
from dataplane.wire import decode_options
from dataplane.wire.fields import UNKNOWN_LINK
from qoetap import config
from qoetap.exits import DONE, INPUT, RUN_ERROR, USAGE, Exit
from qoetap.inputs import filter_layers, inputs, sieve_of
from qoetap.replay import strange_links
from qoetap.say import say

STYLES = {  # format: style, header
    "tsv": (listing.tsv_style, b""),
    "jsonl": (listing.json_style, b""),
    "table": (listing.table_style, listing.table_header()),
    "parquet": (listing.tsv_style, b""),
}
PARQUET_ROWS = 1 << 16


class TextOut:
    """Writes bytes to a file or, for '-', to stdout."""

    def __init__(self, path):
        self.path = path
        try:
            self.fd = 1 if path == "-" else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        except OSError as error:
            raise Exit(USAGE, f"{path}: cannot be written ({error.strerror})") from error

    def write(self, data):
        try:
            while data:
                data = data[os.write(self.fd, data) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise Exit(RUN_ERROR, f"{self.path}: writing failed ({error.strerror})") from error

    def close(self):
        if self.fd > 1:
            os.close(self.fd)


class ParquetOut:
    """Makes typed columns of tab-separated lines. A time that does not fit int64 becomes null."""

    def __init__(self, path):
        try:
            import pyarrow as pa
            import pyarrow.csv
            import pyarrow.parquet as pq
        except ImportError as error:
            raise Exit(USAGE, "Parquet output needs pyarrow: pip install qoetap[parquet]") from error
        if path == "-":
            raise Exit(USAGE, "Parquet is no text: name a file with -o FILE")
        self.pa, self.held, self.size = pa, [], 0
        integers = {name: pa.int64() for i, name in enumerate(listing.COLUMNS) if i not in listing.TEXTS}
        self.schema = pa.schema([(name, integers.get(name, pa.string())) for name in listing.COLUMNS])
        self.types = dict(zip(self.schema.names, self.schema.types, strict=True)) | {"ts_ns": pa.decimal128(38, 0)}
        try:
            self.writer = pq.ParquetWriter(path, self.schema)
        except OSError as error:
            raise Exit(USAGE, f"{path}: cannot be written ({error.strerror})") from error

    def write(self, data):
        self.held.append(bytes(data))
        self.size += len(data)
        if self.size > PARQUET_ROWS * 64:
            self._flush()

    def _flush(self):
        from pyarrow import compute, csv

        pa = self.pa
        table = csv.read_csv(
            io.BytesIO(b"".join(self.held)),
            csv.ReadOptions(column_names=list(listing.COLUMNS)),
            csv.ParseOptions(delimiter="\t"),
            csv.ConvertOptions(column_types=self.types, null_values=["-", ""], strings_can_be_null=True),
        )
        time, least, most = table["ts_ns"], *(pa.scalar(n, pa.decimal128(38, 0)) for n in (-(2**63), 2**63 - 1))
        fits = compute.and_(compute.greater_equal(time, least), compute.less_equal(time, most))
        fitting = compute.if_else(fits, time, pa.scalar(None, time.type)).cast(pa.int64())
        self.writer.write_table(table.set_column(1, "ts_ns", fitting).cast(self.schema))
        self.held, self.size = [], 0

    def close(self):
        if self.held:
            self._flush()
        self.writer.close()


def decode(args):
    """The command; its exit status."""
    settings = config.load([config.Layer("--tunnels", {"tunnels": args.tunnels or []}), *filter_layers(args)], {})
    form = "jsonl" if args.json else args.format
    files = inputs(args)
    style, header = STYLES[form]
    out = (ParquetOut if form == "parquet" else TextOut)(args.output)
    how = decode_options(bytes(config.SECRET_BYTES), config.tunnel_bits(settings)), sieve_of(settings)
    with contextlib.closing(out):
        out.write(header)
        problems = [p for path in files if (p := decode_file(path, listing.Listing(style(), BATCH_ROWS), *how, out))]
    for problem in problems:
        say(problem)
    return INPUT if problems else DONE


def decode_file(path, lines, options, sieve, out):
    """Write a line for each packet of one capture that passes; the sentence about what is wrong with it, or None."""
    batch, number, clock, count = Batch(BATCH_ROWS), 1, new_clock(), Kernel(set_clock)
    try:
        source = open_capture(path, BATCH_ROWS)
    except CaptureError as error:
        return str(error)
    unknown = 0
    for block in blocks_of(source, sieve):
        batch.fill(block, options, number - 1, count(block.frames, clock))
        unknown += batch.reasons[0, UNKNOWN_LINK]
        out.write(lines.lines(batch, block, number))
        number += len(block.frames)
    return source.problem or strange_links(path, number - 1, unknown)
