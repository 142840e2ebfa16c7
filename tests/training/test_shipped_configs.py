"""The runs in training/configs: all load and build, and the large ones are the paper's."""

import json
import math
from pathlib import Path

import pytest
import torch

from cots_model.config import load_config
from cots_model.model import CotsModel
from index_builder.sources.open import open_source
from tests.conftest import REPOSITORY
from training.config import TrainConfig, load_train_config
from training.dvae import Dvae, DvaeConfig
from training.image_tokenizer import DALLE_VOCAB_SIZE, DalleEncoder
from training.objective import Objective
from training.optim import make_optimiser
from training.tokenizer_config import load_tokenizer_config
from training.tokenizer_source import save_dvae
from training.trainer import train

CONFIGS = REPOSITORY / "training/configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
TOKENIZERS = [path for path in FILES if path.stem.startswith("tokenizer")]
RUNS = [path for path in FILES if path not in TOKENIZERS]

# What the paper says, besides the queue and the epochs at full rate.
ALWAYS = {
    "model": "cots-base",
    "objective.instance.momentum": 0.99,
    "objective.instance.temperature": 0.05,
    "optimiser.lr": 5e-5,
    "optimiser.lr_scale": {},
    "optimiser.weight_decay": 0.02,
    "optimiser.warmup_steps": 0,
    "freeze_image": False,
}
PRETRAINING = {
    "objective.instance.queue_length": 12_800,
    "objective.task.weight": 1.0,
    "objective.vision.weight": 1.0,
    "objective.vision.tokenizer": "facebook/flava-image-codebook",
    "objective.vision.share": 0.4,
    "objective.language.weight": 1.0,
    "objective.language.share": 0.15,
    "objective.filter.enabled": True,
    "objective.filter.num_sigmas": 2.0,
    "optimiser.constant_epochs": 5,
}
FINE_TUNING = {
    "objective.instance.mask_same_image": True,
    "objective.task.weight": 1.0,
    "objective.vision.weight": 0.0,
    "objective.language.weight": 0.0,
    "objective.filter.enabled": False,
}
PAPER = {
    "pretrain_cc4m": PRETRAINING,
    "pretrain_cc14m": PRETRAINING,
    "finetune_coco": FINE_TUNING
    | {"objective.instance.queue_length": 6_400, "optimiser.constant_epochs": 5},
    "finetune_flickr30k": FINE_TUNING
    | {"objective.instance.queue_length": 1_200, "optimiser.constant_epochs": 5},
    "finetune_msrvtt": FINE_TUNING
    | {
        "objective.instance.queue_length": 1_444,
        "optimiser.constant_epochs": 1,
        "batch_size": 48,
        "accumulate": 1,
        "data.num_frames": 16,
    },
}
# Table 3: the weights of hidden patches, hidden words and the task level; the filter.
TABLE_3 = {
    "instance": (0, 0, 0, False),
    "instance_cmlm": (0, 1, 0, False),
    "instance_token": (1, 1, 0, False),
    "instance_token_task": (1, 1, 1, False),
    "instance_amf": (0, 0, 0, True),
    "full": (1, 1, 1, True),
}
SWITCHES = (
    "objective.vision.weight",
    "objective.language.weight",
    "objective.task.weight",
    "objective.filter.enabled",
)


def stem(path: Path) -> str:
    return path.stem


def load(name: str) -> TrainConfig:
    return load_train_config(CONFIGS / f"{name}.yaml")


def flat(config: TrainConfig) -> dict[str, object]:
    """Every value by its dotted key; `lr_scale` and lists as a whole."""

    def walk(values, prefix):
        for key, value in values.items():
            if isinstance(value, dict) and key != "lr_scale":
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return dict(walk(config.model_dump(mode="json"), ""))


def test_what_is_to_be_shipped_is_there():
    small = {"pretrain_mini", "finetune_flickr8k"}
    assert {path.stem for path in CONFIGS.glob("*.yaml")} >= small | PAPER.keys()
    for folder, more in (("ablation", set()), ("ablation_mini", {"start", "full_light_task"})):
        assert {path.stem for path in (CONFIGS / folder).glob("*.yaml")} == TABLE_3.keys() | more
    mini = {"contrast", "projections", "pretrain", "finetune"}
    assert {path.stem for path in (CONFIGS / "cots_mini").glob("*.yaml")} == mini


@pytest.mark.parametrize("path", RUNS, ids=stem)
def test_runs_load_and_build(path):
    """Model, heads and optimiser, without memory for their weights."""
    config = load_train_config(path)
    shipped = load_config(config.model)
    with torch.device("meta"):
        model = CotsModel(shipped.model)
        objective = Objective(
            model.requires_grad_(not config.freeze_image),
            config.objective,
            num_codes=DALLE_VOCAB_SIZE if config.objective.vision.weight else 0,
            freeze_image=config.freeze_image,
        )
    model.image_projection.requires_grad_(True)
    model.text_projection.requires_grad_(True)
    assert make_optimiser(objective, config.optimiser).param_groups
    brings_all = config.init.image.startswith("checkpoint:")
    assert len(config.init.beside) == (0 if brings_all else len(shipped.model.image.beside))


@pytest.mark.parametrize("path", TOKENIZERS, ids=stem)
def test_tokenizer_runs_load(path):
    assert load_tokenizer_config(path).model.vocab_size < DALLE_VOCAB_SIZE


def test_no_two_runs_write_to_one_folder():
    runs = [load_train_config(path) for path in RUNS]
    outputs = [run.output for run in (*runs, *map(load_tokenizer_config, TOKENIZERS))]
    assert len(set(outputs)) == len(outputs)
    assert len({run.name for run in runs}) == len(runs)
    assert not [path for path in outputs if path.is_absolute()]


@pytest.mark.parametrize("name", PAPER)
def test_large_runs_have_the_papers_numbers(name):
    values, expected = flat(load(name)), ALWAYS | PAPER[name]
    assert {key: values[key] for key in expected} == expected
    assert values["epochs"] > values["optimiser.constant_epochs"]  # "the rest epochs"


def test_the_papers_patches_are_dalles_tokens():
    shipped = load_config(load("pretrain_cc4m").model)
    with torch.device("meta"):
        grid = CotsModel(shipped.model).image.patch_grid
        side = DalleEncoder().grid(shipped.preprocess.image_size)
    assert grid == (side, side) == (24, 24)
    assert shipped.model.embed_dim == 256


def test_cc14m_is_cc4m_and_cc12m():
    small, large = (load(name) for name in ("pretrain_cc4m", "pretrain_cc14m"))
    added = [source.path for source in large.data.train if source not in small.data.train]
    assert added == ["data/cc12m/*.tar"]
    assert large.data.train[: len(small.data.train)] == small.data.train
    changed = {key for key, value in flat(large).items() if value != flat(small)[key]}
    assert changed == {"name", "output", "data.train"}


@pytest.mark.parametrize("name", [name for name in PAPER if name.startswith("finetune")])
def test_fine_tunings_start_from_the_pretraining_and_never_train_on_the_test_split(name):
    config, pretrained = load(name), load("pretrain_cc4m")
    source = f"checkpoint:./{pretrained.output}"
    assert (config.init.image, config.init.text) == (source, source)
    assert config.model == pretrained.model
    for source in config.data.train:
        assert source.split == "train" or source.split_file.name == "MSRVTT_train.9k.csv"


@pytest.mark.parametrize("name", ["pretrain_cc4m", "pretrain_cc14m"])
def test_pretrainings_leave_out_the_pictures_that_are_scored(name):
    for source in load(name).data.train:
        assert source.split == "train" or source.path.endswith("/*.tar")


@pytest.mark.parametrize("name", TABLE_3)
@pytest.mark.parametrize("folder", ["ablation", "ablation_mini"])
def test_ablation_rows_differ_only_where_table_3_says(folder, name):
    row, first = (flat(load(f"{folder}/{one}")) for one in (name, "instance"))
    assert tuple(row[key] for key in SWITCHES) == TABLE_3[name]
    assert row.keys() == first.keys()
    scales = (values.pop("optimiser.lr_scale") for values in (row, first))
    ours, shared = ({k: v for k, v in scale.items() if "head" not in k} for scale in scales)
    assert ours == shared
    changed = {key for key, value in row.items() if value != first[key]}
    assert changed <= {*SWITCHES, "name", "output", "notes"}


def test_the_full_ablation_row_is_the_pretraining_on_other_data():
    row, pretraining = (flat(load(name)) for name in ("ablation/full", "pretrain_cc4m"))
    changed = {key for key, value in row.items() if value != pretraining[key]}
    how = {"evaluate_every", "engine.save_every"}
    assert changed <= {"name", "output", "data.train", "data.evaluate", "data.stream"} | how
    assert [source.split for source in load("ablation/full").data.evaluate] == ["test"]
    assert row["evaluate_every"] == row["epochs"]  # nothing is chosen by the test pictures


def test_the_small_tokenizer_makes_the_small_towers_patches():
    config = load("pretrain_mini")
    tokenizer = load_tokenizer_config(CONFIGS / "tokenizer_mini_112.yaml")
    assert config.objective.vision.tokenizer == str(tokenizer.output)
    shipped = load_config(config.model)
    with torch.device("meta"):
        grid = CotsModel(shipped.model).image.patch_grid
    assert grid == (tokenizer.model.grid, tokenizer.model.grid)
    assert tokenizer.picture.image_size == shipped.preprocess.image_size
    assert tokenizer.picture.resize == shipped.preprocess.resize


def test_the_bundled_checkpoints_runs_follow_each_other():
    """Contrast trains the text tower, then both projections alone, then everything together."""
    first, second, third, further = (
        load(f"cots_mini/{name}") for name in ("contrast", "projections", "pretrain", "finetune")
    )
    assert second.init.text == f"checkpoint:./{first.output}"
    assert (second.init.image, second.init.beside) == (first.init.image, first.init.beside)
    assert (first.freeze_image, first.freeze_text) == (True, False)
    assert (second.freeze_image, second.freeze_text) == (True, True)
    for before, after in ((second, third), (third, further)):
        start = f"checkpoint:./{before.output}"
        assert (after.init.image, after.init.text) == (start, start)
        assert {after.freeze_image, after.freeze_text} == {False}
    assert all(third.objective.weights().values())
    assert third.objective.filter.enabled
    tokenizer = load_tokenizer_config(CONFIGS / "tokenizer_mini.yaml")
    assert third.objective.vision.tokenizer == str(tokenizer.output)
    on = {level for level, weight in further.objective.weights().items() if weight}
    assert on == {"image_to_text", "text_to_image", "task"}


def test_small_runs_name_shards_of_the_development_data(shared_data):
    for name in ("pretrain_mini", "finetune_flickr8k", "ablation_mini/instance"):
        data = load(name).data
        for source in (*data.train, *data.evaluate):
            inside = source.path.removeprefix("../shared/data/")
            assert inside != source.path
            assert open_source([str(shared_data / inside)]).shards


def test_the_small_pretraining_and_fine_tuning_run(shard, model_yaml, bert, tmp_path):
    """As they are shipped, but for a tiny model, its tokenizer and 32 pictures."""
    dvae = Dvae(DvaeConfig(vocab_size=16, grid=4, widths=(8,), num_blocks=0, code_dim=8))
    save_dvae(dvae, tmp_path / "tokenizer")
    shared = [
        f"model={model_yaml}",
        f"data={{train: ['{shard}'], evaluate: ['{shard}']}}",
        "objective.instance.queue_length=12",
        "epochs=1",
        "batch_size=8",
        "device=cpu",
    ]
    pretraining = train(
        load_train_config(
            CONFIGS / "pretrain_mini.yaml",
            [
                *shared,
                "init.image=random",
                f"init.text={bert}",
                f"objective.vision.tokenizer={tmp_path / 'tokenizer'}",
                f"output={tmp_path / 'pretrained'}",
            ],
        )
    )
    last = losses_of_the_last_step(tmp_path / "pretrained")
    assert last.keys() == {"image_to_text", "text_to_image", "task", "vision", "language", "total"}
    assert all(math.isfinite(value) and value > 0 for value in last.values())
    start = f"checkpoint:{pretraining.checkpoint}"
    changes = [f"init={{image: '{start}', text: '{start}'}}", f"output={tmp_path / 'tuned'}"]
    tuned = train(load_train_config(CONFIGS / "finetune_flickr8k.yaml", [*shared, *changes]))
    assert losses_of_the_last_step(tmp_path / "tuned").keys() == last.keys() - {
        "vision",
        "language",
    }
    assert tuned.metrics is not None
    assert tuned.fingerprint != pretraining.fingerprint


def losses_of_the_last_step(folder: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    last = [line for line in lines if "loss/total" in line][-1]
    return {k.removeprefix("loss/"): v for k, v in last.items() if k.startswith("loss/")}
