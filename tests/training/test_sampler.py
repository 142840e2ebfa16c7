"""The order of pairs: from the seed alone, the same on any number of processes, resumable."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from cots_model.errors import InputError
from index_builder.content import Location
from tests.training.conftest import png, two_colours, write_tar
from training.data import read_examples
from training.example import Example
from training.formats.source import SourceConfig
from training.orders import MemoryOrder, ShardOrder
from training.sampler import PairStream

SIZES = (7, 1, 12, 0, 20, 5)  # of shards; 45 pictures


def made_up(count: int) -> list[Example]:
    captions = ("one", "two", "three")
    return [Example(f"{n}", Location(f"{n}.jpg"), captions[: 1 + n % 3]) for n in range(count)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("shards")
    picture = png(two_colours("red", "blue", 4))
    for shard, size in enumerate(SIZES):
        members = []
        for n in range(size):
            text = f'{{"captions": ["{shard}-{n} a", "{shard}-{n} b"]}}'
            members += [(f"{shard}-{n:02d}.png", picture), (f"{shard}-{n:02d}.json", text.encode())]
        write_tar(folder / f"{shard}.tar", [*members, ("silent.png", picture)])
    return [str(folder / "{0..5}.tar")]


@pytest.fixture(params=["memory", "one block", "blocks", "single"])
def order(request, shards):
    if request.param == "memory":
        return MemoryOrder(made_up(45))
    return ShardOrder(
        shards, block_size={"one block": 100, "blocks": 8, "single": 1}[request.param]
    )


def stream(order, **keys) -> PairStream:
    return PairStream(order, **{"batch_size": 4, "seed": 0, **keys})


def drawn(steps) -> list[tuple[str, str, int]]:
    return [(d.example.id, d.caption, d.number) for step in steps for d in step.draws]


def test_an_epoch_has_every_picture_once(order):
    assert stream(order).steps_per_epoch() == 11
    pairs = drawn(stream(order, batch_size=1).epoch(0))
    assert len(pairs) == len({p[0] for p in pairs}) == len({p[2] for p in pairs}) == 45
    assert len(drawn(stream(order).epoch(0))) == 44


@pytest.mark.parametrize("streams", [False, True])
def test_a_repeated_source_comes_as_often_with_captions_and_views_of_its_own(shards, streams):
    sources = [SourceConfig(path=shards[0], repeat=3)]
    order = ShardOrder(sources, block_size=8) if streams else MemoryOrder(read_examples(sources))
    assert order.count() == 3 * 45
    draws = [d for step in stream(order, batch_size=1).epoch(0) for d in step.draws]
    assert set(Counter(d.number for d in draws).values()) == {3}
    assert len({d.seed for d in draws}) == 3 * 45
    captions = {n: {d.caption for d in draws if d.number == n} for n in {d.number for d in draws}}
    assert 20 < sum(len(said) == 2 for said in captions.values()) < 45  # 34 expected


def test_equal_seeds_and_epochs_give_equal_pairs(order):
    epochs = {
        (seed, epoch): drawn(stream(order, seed=seed).epoch(epoch))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert drawn(stream(order).epoch(1)) == epochs[0, 1]
    orders = {tuple(pair[0] for pair in pairs) for pairs in epochs.values()}
    assert len(orders) >= 3  # six shards read one picture at a time have few orders


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_each_step(order, world):
    whole = list(stream(order, batch_size=2 * world).epoch(1))
    parts = [
        list(stream(order, batch_size=2, rank=rank, world_size=world).epoch(1))
        for rank in range(world)
    ]
    assert {len(part) for part in parts} == {len(whole)}
    for number, step in enumerate(whole):
        assert drawn([step]) == [pair for part in parts for pair in drawn([part[number]])]
        assert {json.dumps(part[number].state) for part in parts} == {json.dumps(step.state)}


def test_every_step_can_be_the_last_before_a_restart(order):
    whole = list(stream(order).epoch(2))
    for number, step in enumerate(whole):
        state = json.loads(json.dumps(step.state))
        assert state["step"] == number + 1
        assert list(stream(order).resume(state)) == whole[number + 1 :]
    assert list(stream(order).resume(stream(order).start_of(2))) == whole


def test_a_run_may_go_on_with_another_number_of_processes(order):
    whole = list(stream(order, batch_size=6).epoch(0))
    other = stream(order, batch_size=2, rank=1, world_size=3).resume(whole[3].state)
    expected = [pair for step in whole[4:] for pair in drawn([step])[2:4]]
    assert drawn(other) == expected


def test_captions_change_with_the_epoch_and_all_have_their_turn(order):
    seen = {pair[:2] for epoch in range(20) for pair in drawn(stream(order).epoch(epoch))}
    per_picture = Counter(picture for picture, _ in seen)
    expected = Counter({e.example.id: len(e.example.captions) for e in _entries(order)})
    assert per_picture == expected


def _entries(order):
    from training.orders import Mark

    return [block[row] for _, block in order.blocks(0, 0, Mark()) for row in range(len(block))]


def test_views_differ_by_picture_and_epoch(order):
    draws = [d for epoch in (0, 1) for step in stream(order).epoch(epoch) for d in step.draws]
    assert len({d.rng().integers(2**60) for d in draws}) == len(draws) == 88
    assert draws[0].rng().random() == draws[0].rng().random()


def test_blocks_mix_shards_but_hold_no_more_than_they_may(shards):
    order = ShardOrder(shards, block_size=10)
    from training.orders import Mark

    blocks = list(order.blocks(0, 0, Mark()))
    assert [len(block) for _, block in blocks] == [10, 10, 10, 10, 5]
    sources = [{entry.example.id[0] for entry in block} for _, block in blocks]
    assert any(len(source) > 1 for source in sources)
    assert [mark.block for mark, _ in blocks] == [0, 1, 2, 3, 4]


def test_a_resumed_stream_reads_only_what_it_needs(shards, monkeypatch):
    order = ShardOrder(shards, block_size=8)
    steps = list(stream(order).epoch(0))
    opened = []
    plain = ShardOrder._entries
    monkeypatch.setattr(
        ShardOrder,
        "_entries",
        lambda self, n, visit, quiet: opened.append(n) or plain(self, n, visit, quiet=quiet),
    )
    list(stream(order).resume(steps[8].state))
    assert len(opened) < len(SIZES)


def test_other_sources_stream_too(shards, tmp_path):
    from tests.training.conftest import write_folder

    folder = write_folder(tmp_path / "photos", [("red", "blue")] * 9)
    order = ShardOrder([*shards, str(folder)], block_size=4)
    assert order.count() == 54
    pairs = drawn(stream(order, batch_size=1).epoch(0))
    assert len({pair[2] for pair in pairs}) == 54


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 1}, "with seed 1 and now has 0; resume with the same data"),
        ({"data": "x"}, "with data 'x' and now has"),
        ({"batch": 8}, "with batch 8 and now has 4"),
        ({"taken": -1}, "the saved place has taken = -1; a count is needed"),
        ({"step": None}, "the saved place has step = None"),
        ({"skip": True}, "skip = True"),
    ],
)
def test_a_state_of_another_run_is_refused(order, change, says):
    state = next(stream(order).epoch(0)).state | change
    with pytest.raises(InputError, match=says):
        stream(order).resume(state)


def test_shards_at_a_url_and_folders_of_none_are_not_streamed(shards):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/bucket/a.tar", Path(shards[0]).with_name("0.tar").read_bytes())
    with pytest.raises(InputError, match="local shards are accepted"):
        ShardOrder(["memory://bucket/a.tar"], block_size=2)
    with pytest.raises(InputError, match="no tar shard"):
        ShardOrder(["memory://bucket"], block_size=2)
    memory.rm("/bucket", recursive=True)


def test_the_data_are_known_again(shards, tmp_path):
    repeated = [replace(example, repeat=2) for example in made_up(45)]
    prints = [
        MemoryOrder(made_up(45)).fingerprint(),
        MemoryOrder(repeated).fingerprint(),
        MemoryOrder(made_up(44)).fingerprint(),
        ShardOrder(shards, block_size=8).fingerprint(),
        ShardOrder(shards, block_size=9).fingerprint(),
    ]
    assert len(set(prints)) == 5
    assert MemoryOrder(made_up(45)).fingerprint() == prints[0]
    assert ShardOrder(shards, block_size=8).fingerprint() == prints[3]


def test_an_epoch_of_millions_takes_eight_bytes_each():
    order = MemoryOrder(made_up(1) * 3_000_000)
    order.fingerprint = lambda: ""
    first = next(stream(order).epoch(0))
    assert len({draw.number for draw in first.draws}) == 4


def test_a_run_streams_its_shards(configure, shard, tmp_path):
    from cots_model.errors import ConfigError
    from training.trainer import train

    data = {"train": [str(shard)], "stream": True, "block_size": 10}
    configs = [configure("epochs=1", f"output={tmp_path / name}", data=data) for name in "ab"]
    prints = [train(config).fingerprint for config in configs]
    assert prints[0] == prints[1]
    assert "32 pictures, of which an epoch takes 32" in (tmp_path / "a/README.md").read_text()
    with pytest.raises(ConfigError, match=r"set data\.stream or freeze_image to false"):
        train(configure("freeze_image=true", f"output={tmp_path / 'c'}", data=data))


def test_loading_processes_do_not_change_a_run(configure, tmp_path):
    from training.trainer import train

    prints = [
        train(configure("epochs=1", f"data.num_workers={n}", f"output={tmp_path / str(n)}"))
        for n in (0, 2)
    ]
    assert prints[0].fingerprint == prints[1].fingerprint
