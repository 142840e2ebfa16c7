"""`cots index`: build galleries, change them, look at them, check them."""

from __future__ import annotations

from cots_cli.lazy_group import LazyGroup

command = LazyGroup(
    name="index",
    package="cots_cli.index",
    sub_commands={
        "build": "Index a source and publish it as a gallery.",
        "update": "Embed what is new or has changed in the source.",
        "delete": "Take items out.",
        "merge": "Join galleries, or the shards of a build.",
        "duplicates": "List groups of items that are nearly the same.",
        "export": "Write a gallery to Milvus, to be searched there.",
        "info": "Say what a gallery is.",
        "versions": "List the versions that a gallery keeps.",
        "rollback": "Go back to one of them.",
        "verify": "Check every file of a gallery.",
    },
    help="Build galleries, change them, look at them, check them.",
    epilog="""\b
Examples:
  cots index build ~/Pictures --gallery galleries/photos
  cots index update galleries/photos
  cots index info galleries/photos
""",
)
