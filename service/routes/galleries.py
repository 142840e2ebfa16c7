"""`/v1/galleries`: which galleries there are, and loading what is new of them."""

from __future__ import annotations

from datetime import datetime

from fastapi import APIRouter, Depends

from index_builder.gallery import Gallery
from service.bodies import refuse_body
from service.errors import ApiError, gallery_not_found
from service.gallery_status import GalleryStatus
from service.opening import FAULTS
from service.routes.parameters import NO_QUERY, CurrentService, NamedGallery, errors
from service.schemas import GalleryBody, GalleryList, IndexBody, RefusedBody, ReloadBody

router = APIRouter(
    prefix="/v1/galleries",
    tags=["galleries"],
    responses=errors(401, 422),
    dependencies=[NO_QUERY],
)


@router.get("")
async def list_galleries(service: CurrentService) -> GalleryList:
    """The galleries that are served, by name."""
    registry = service.registry
    loaded = registry.loaded
    return GalleryList(
        galleries=[describe(loaded[name], registry.status(name)) for name in sorted(loaded)]
    )


@router.get("/{g}", responses=errors(404, 503))
async def get_gallery(gallery: NamedGallery, service: CurrentService) -> GalleryBody:
    """One gallery."""
    return describe(gallery, service.registry.status(gallery.name))


@router.post(
    "/{g}/reload",
    responses=errors(404, 408, 409, 413, 429, 503),
    dependencies=[Depends(refuse_body)],
)
async def reload_gallery(g: str, service: CurrentService) -> ReloadBody:
    """Load the current version beside the old one, test it, and serve it; answers when it is done.

    Requests in flight finish on the old version. A version that is damaged, of another model or
    too big is refused (409), and the old one goes on.
    """
    before = service.registry.status(g)
    status = await service.reloader.reload(g)
    if status is None:
        raise gallery_not_found(g)
    if status.refusal is not None or status.version is None:
        raise _refused(status)
    previous = None if before is None else before.version
    return ReloadBody(gallery=g, previous_version=previous, version=status.version)


def describe(gallery: Gallery, status: GalleryStatus | None = None) -> GalleryBody:
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
        loaded=None if status is None or status.loaded is None else _iso(status.loaded),
        refused=None if status is None else _refused_body(status),
    )


def _refused_body(status: GalleryStatus) -> RefusedBody | None:
    refusal = status.refusal
    if refusal is None:
        return None
    return RefusedBody(
        version=refusal.version,
        reason=refusal.fault,
        message=FAULTS[refusal.fault],
        since=_iso(refusal.since),
    )


def _refused(status: GalleryStatus) -> ApiError:
    message = f"{status.problem()}; see the server's log, build the gallery again and reload it"
    return ApiError(409, "version_refused", message, param="gallery")


def _iso(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds")
