"""Write all sample captures and the events expected of them: `python pcaps/make.py [FOLDER]`, by default here.

The same bytes each time: no clock, no randomness without a seed. Nothing here runs qoetap.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pcaps.cases import CASES


def make(folder):
    """Write `<file>` and `<case>.expected.jsonl` of each case; the stories told."""
    folder.mkdir(parents=True, exist_ok=True)
    stories = [case() for case in CASES]
    for story in stories:
        capture, expected = story.make()
        if capture is not None:
            (folder / story.file).write_bytes(capture)
        (folder / f"{story.name}.expected.jsonl").write_text(expected)
    return stories


if __name__ == "__main__":
    told = make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent)
    print(f"{len(told)} cases, {sum(len(story.marks) for story in told)} packets", file=sys.stderr)
