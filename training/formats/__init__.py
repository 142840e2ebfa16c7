"""Readers of every data format: from a `SourceConfig` to examples.

A source is a string, the path of a folder, of tar shards or of a file, or a mapping that says more:

    data/photos
    {path: dataset_coco.json, image_root: coco, split: train}
    {format: table, path: pairs.tsv, image_root: photos, image_column: file, caption_column: title}

The format is told from what the file holds, unless `format` names it.
"""
