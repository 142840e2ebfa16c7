"""`/v1/galleries`: which galleries there are."""

from __future__ import annotations

from fastapi import APIRouter

from index_builder.gallery import Gallery
from service.routes.parameters import CurrentService, NamedGallery, errors
from service.schemas import GalleryBody, GalleryList, IndexBody

router = APIRouter(prefix="/v1/galleries", tags=["galleries"], responses=errors(401))


@router.get("")
async def list_galleries(service: CurrentService) -> GalleryList:
    """The galleries that are served, by name."""
    loaded = service.registry.loaded
    return GalleryList(galleries=[describe(loaded[name]) for name in sorted(loaded)])


@router.get("/{g}", responses=errors(404, 503))
async def get_gallery(gallery: NamedGallery) -> GalleryBody:
    """One gallery."""
    return describe(gallery)


def describe(gallery: Gallery) -> GalleryBody:
    """What a client may know of a gallery."""
    manifest = gallery.manifest
    parameters = {k: v for k, v in manifest.index.parameters.items() if k != "uri"}  # a host
    index = IndexBody(kind=manifest.index.kind, parameters=parameters)
    return GalleryBody(
        name=gallery.name,
        modality=manifest.modality,
        count=manifest.count,
        dim=manifest.dim,
        index=index,
        version=gallery.version,
        model=manifest.model_name,
        model_fingerprint=manifest.model_fingerprint,
        created=manifest.created,
    )
