"""Building parts on a Ray cluster: the same `PartBuilder`, in one actor per GPU or machine.

    ray start --head                                    # and `ray start --address=...` elsewhere
    cots index build photos --gallery /shared/galleries/photos --engine ray

The driver lists the source and joins the parts; Ray Data hands the parts to actors and gives those
of a machine that was lost to another. Every machine must see the gallery's folder and the originals
under the same paths, and have the same version of this package and the checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError, RayTaskError

from cots_model.errors import CotsError
from index_builder.listing import PartSpec
from index_builder.options import BuildOptions
from index_builder.part_builder import PartBuilder, PartSettings
from index_builder.parts import Part, open_part

_REACH_S = 10.0
_ACCEPTED = "start one with `ray start --head`, name one in RAY_ADDRESS, or leave out --engine ray"


@dataclass(frozen=True)
class _Pool:
    """What actors a cluster is given."""

    size: int
    num_cpus: float
    num_gpus: float


class PartActor:
    """Builds the parts that Ray hands to it; a process on some machine of the cluster."""

    def __init__(
        self, settings: PartSettings, parts: str, *, checkpoint: str, device: str, num_threads: int
    ) -> None:
        """Load the model.

        Raises:
            CotsError: if it is another one than the driver's.
        """
        import torch

        from cots_model.encoder import Encoder

        torch.set_num_threads(num_threads)
        encoder = Encoder.load(checkpoint, device=device, precision=settings.precision)  # type: ignore[arg-type]
        if encoder.fingerprint != settings.model_fingerprint:
            raise CotsError(
                f"the checkpoint {checkpoint} has fingerprint {encoder.fingerprint} on "
                f"{os.uname().nodename} and {settings.model_fingerprint} where the build was "
                "started; give every machine the same"
            )
        self._builder = PartBuilder(settings, encoder, Path(parts))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Build one part.

        Args:
            batch: of one row, a part's listing.

        Returns:
            one row: the part's number and the time of each stage.
        """
        [line] = batch["spec"]
        fields = json.loads(line)
        spec = PartSpec(**fields | {"path": Path(fields["path"])})
        for _ in self._builder.build([spec]):
            pass
        seconds = json.dumps(self._builder.seconds)
        self._builder.seconds.clear()
        return {"number": [spec.number], "seconds": [seconds]}


def build_parts(
    specs: Iterator[PartSpec],
    parts: Path,
    settings: PartSettings,
    *,
    options: BuildOptions,
    advance: Callable[[int], object],
    seconds: dict[str, float],
) -> Iterator[Part]:
    """Build parts on the cluster; they come in the order in which they are finished.

    The listing is finished before the first part is begun.

    Args:
        specs: the parts to be built.
        parts: the folder for finished parts, seen by every machine.
        settings: what a part depends on.
        options: checkpoint and device.
        advance: called with the number of entries of each finished part.
        seconds: what the stages take, all actors together, is added here.

    Raises:
        CotsError: if there is no cluster, or a part could not be built.
    """
    wanted = {spec.number: _absolute(spec) for spec in specs}
    if not wanted:
        return
    rows = [{"spec": json.dumps(vars(spec), default=str)} for spec in wanted.values()]
    with _connected():
        try:
            for row in _dataset(rows, parts.absolute(), settings, options).iter_rows():
                spec = wanted[int(row["number"])]
                part = open_part(parts, spec)
                if part is None:
                    raise CotsError(
                        f"{parts / spec.name} was built on the cluster but is not whole here; "
                        "the gallery must lie on a file system that all machines share"
                    )
                advance(spec.num_entries)
                for stage, took_s in json.loads(row["seconds"]).items():
                    seconds[stage] = seconds.get(stage, 0.0) + took_s
                yield part
        except RayTaskError as err:
            raise _cause(err) from err
        except RayError as err:
            message = f"the Ray cluster failed ({err}); run the same command to go on"
            raise CotsError(message) from err


def _dataset(
    rows: list[dict[str, str]], parts: Path, settings: PartSettings, options: BuildOptions
) -> ray.data.Dataset:
    import torch

    pool = _pool(options.device, len(rows))
    return ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        PartActor,
        fn_constructor_args=(settings, str(parts)),
        fn_constructor_kwargs={
            "checkpoint": options.checkpoint,
            "device": options.device,
            "num_threads": torch.get_num_threads(),  # other numbers sum in another order
        },
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=pool.size, max_tasks_in_flight_per_actor=1),
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus,
    )


def _pool(device: str, num_parts: int) -> _Pool:
    """One actor per GPU; without GPUs one per machine, since each takes all its cores."""
    num_gpus = int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
    if num_gpus and device != "cpu":
        return _Pool(min(num_gpus, num_parts), num_cpus=1, num_gpus=1)
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    machines = [node for node in nodes if node["Alive"] and node["Resources"].get("CPU")]
    return _Pool(max(1, min(len(machines), num_parts)), num_cpus=1, num_gpus=0)


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """A cluster; it is left as soon as the parts are built, unless others were connected before."""
    if ray.is_initialized():
        yield
        return
    _connect()
    try:
        yield
    finally:
        ray.shutdown()


def _connect() -> None:
    address = os.environ.get("RAY_ADDRESS", "auto")
    try:
        _reach(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as err:
        where = "is running here" if address == "auto" else f"answers at {address}"
        raise CotsError(f"no Ray cluster {where} ({_first_line(err)}); {_ACCEPTED}") from err
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False  # the builder has its own


def _reach(address: str) -> None:
    """Try the port of an address first: Ray itself waits for minutes. ConnectionError if closed."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except (OSError, ValueError, OverflowError) as err:
        raise ConnectionError(str(err)) from err


def _absolute(spec: PartSpec) -> PartSpec:
    return replace(spec, path=spec.path.absolute())


def _cause(err: RayTaskError) -> CotsError:
    cause: BaseException | None = err
    while cause is not None:
        if isinstance(cause, CotsError) and not isinstance(cause, RayTaskError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return CotsError(f"a part could not be built on the cluster: {_first_line(err)}")


def _first_line(err: BaseException) -> str:
    lines = str(err).strip().splitlines()
    return lines[0] if lines else type(err).__name__
