"""How hard an approximate index looks: what it is tuned by, and searched with."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from cots_model.errors import GalleryError
from index_builder.manifest import Parameter

_MOST = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Search parameters; they go with each search and are never set on an index that is shared.

    Attributes:
        ef_search: HNSW and CAGRA: rows that a search keeps in sight.
        num_probes: IVF: lists that are looked through.
        refine: rows scored again from the stored vectors, per row wanted.
    """

    ef_search: int = 0
    num_probes: int = 0
    refine: int = 1

    def times(self, factor: int) -> Effort:
        """So many times as wide a search."""
        return Effort(
            ef_search=self.ef_search * factor,
            num_probes=self.num_probes * factor,
            refine=self.refine,
        )

    def to_parameters(self) -> dict[str, Parameter]:
        """For the manifest, without what the kind does not have."""
        return {name: value for name, value in asdict(self).items() if value}


def effort_of(parameters: dict[str, Parameter]) -> Effort:
    """Read what `Effort.to_parameters` wrote.

    Raises:
        GalleryError: if there is another name, or a value that no build would have written.
    """
    known = asdict(Effort())
    for name, value in parameters.items():
        if name not in known or type(value) is not int or not 1 <= value <= _MOST:
            raise GalleryError(
                f"the manifest gives the index's search parameter {name} = {value!r}; accepted: "
                f"{', '.join(known)}, whole numbers from 1 to {_MOST:,}; build the gallery again"
            )
    return Effort(**{name: int(value) for name, value in parameters.items()})
