"""The corpus of broken trees: what people have on disk, with a mistake in it."""

import broken_annotations
import broken_archives
import broken_outputs
import broken_pictures
import broken_tables

LIST = [
    *broken_annotations.TREES,
    *broken_pictures.TREES,
    *broken_archives.TREES,
    *broken_tables.TREES,
    *broken_outputs.TREES,
]
TREES = {tree.name: tree for tree in LIST}
