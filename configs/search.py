"""Search: `configs/search.py`, or `:quickstart`, with --workdir=INDEX.

--config.model=RUN --config.images=DIR makes an index, or brings it up to date;
--config.query="a woman in a red coat" asks it, and both may stand in one command.
"""

from typing import Any

from ml_collections import ConfigDict, config_dict, config_flags
from ml_collections.config_flags import tuple_parser

from configs import common


class _Tuples(type):
    """What a flag sets is a plain tuple, which a field of `Texts` must take."""

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, tuple)


class Texts(tuple, metaclass=_Tuples):
    """Texts, one for each time that the flag is given: `--config.query="a, b"`."""


class _Verbatim(tuple_parser.TupleParser):
    """Takes each text as it is: a sentence with a comma is no tuple, "3" no number.

    All uses of a flag come at once only to a parser that is a `TupleParser`.
    """

    def parse(self, argument: Any) -> tuple[str, ...]:
        return (argument,) if isinstance(argument, str) else tuple(argument)


config_flags.register_flag_parser_for_type(Texts, _Verbatim())


def get_config(variant: str = "") -> ConfigDict:
    """The locked config of a variant."""
    config = ConfigDict(
        dict(
            job="search",
            # A run directory, an export, or CLIP weights (also a hub id); empty: the
            # model that the index was made with.
            model="",
            checkpoint="best",  # of a run; or "last", or a step
            # Of CLIP weights: (height, width) to work at, (0, 0) for CLIP's own; and
            # how pictures come to it, "squeeze", "pad", or "crop" as CLIP itself does.
            size=(0, 0),
            fit="squeeze",
            images=Texts(),  # folders of crops of persons; empty: the index as it is
            # A CSV with path,x,y,w,h: persons cut out of photographs. None, not "": a shell
            # variable that is not set must not make it whole photographs.
            boxes=config_dict.placeholder(str),
            query=Texts(),  # sentences, .txt files with a sentence a line, pictures
            k=10,  # results of each query
            words=True,  # which words mattered: each sentence again without each word
            approximate=False,  # on a TPU, quicker and nearly as good
            out="",  # where results.json and results.html go; empty: beside the index
            faiss="",  # a file to write the index to, as FAISS reads it
            # Of the embeddings on disk, "float16" or "float32"; empty: that of the index
            # that is there, float16 for a new one.
            dtype="",
            batch_size=0,  # pictures a device at a time; 0: 16 on CPUs, 64 elsewhere
            threads=8,  # that read pictures
            content=False,  # read every file again, not those of another size or date
            overwrite=False,  # replace an index that is there
            serve=False,  # a page to search on, at demo.host and demo.port
            demo=dict(host="127.0.0.1", port=7860, upload_mb=8.0),
            mesh=dict(data=0, fsdp=1),
        )
    )
    if variant == "quickstart":
        config.model = "runs/quickstart/finetune"
        config.images = Texts(("data/synthetic/pictures",))
        config.threads = 2
        return config.lock()
    common.parse(variant, {})
    return config.lock()
