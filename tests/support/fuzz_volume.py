"""Have atheris feed the readers of a volume: it sees which of our lines its bytes reach.

python fuzz_volume.py FOLDER [options of libFuzzer]
"""

import logging
import os
import sys
from pathlib import Path

import atheris

#: Modules to instrument; instrumenting all imports takes minutes.
WATCHED = ["flashpool.envs.store", "flashpool.envs.archives", "flashpool.envs.resolving.memo"]
WATCHED += ["flashpool.frontends.qb.outbox", "flashpool.frontends.qb.spill"]
WATCHED += ["flashpool.frontends.instance_files"]

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
with atheris.instrument_imports(include=WATCHED):
    from support.volume_readers import Readers, examples


def main(folder: Path, options: list[str]) -> None:
    """Begin with each reader's valid contents; run for as long as the options say."""
    logging.disable()
    os.fsync = lambda fd: None  # fsync is not needed here
    readers = Readers(folder)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, example in enumerate(examples(readers)):
        (corpus / str(number)).write_bytes(example)
    atheris.Setup([sys.argv[0], str(corpus), f"-artifact_prefix={folder}/", *options], readers.feed)
    atheris.Fuzz()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
