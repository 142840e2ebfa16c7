"""The vector of a video in evaluation and training: the mean of its frames', normalised."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from cots_model.config import load_config
from cots_model.encoder import Encoder
from cots_model.model import CotsModel
from index_builder.content import Location
from training.data import read_examples
from training.engine.hiding import Hider
from training.engine.world import World
from training.evaluate import _embed_images, embed
from training.example import BrokenExampleError, Example
from training.formats.source import SourceConfig
from training.objective import per_frame, project_images
from training.tokenizer_source import load_tokenizer_model
from training.trainer import make_stepper, train


@pytest.fixture
def clips(tmp_path):
    from tests.cots_model.test_videos import write_clip

    entries = []
    for count in (2, 5, 16, 40):
        write_clip(tmp_path / f"{count}.mp4", count)
        entries.append({"video": f"{count}.mp4", "caption": f"{count} men"})
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(entries))
    return SourceConfig(path=str(path), image_root=tmp_path)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_video_is_the_mean_of_its_frames(clips, tiny_checkpoint, batch_size, examples):
    encoder = Encoder.load(tiny_checkpoint, device="cpu")
    mixed = [*read_examples([clips]), examples[0]]
    image_NE, kept = _embed_images(encoder, mixed, batch_size, 16, 0.0)
    assert kept == mixed
    for row, example in enumerate(mixed):
        mean_E = encoder.encode_images(example.frames()).mean(0)
        np.testing.assert_allclose(image_NE[row], mean_E / np.linalg.norm(mean_E), atol=1e-5)


def test_a_run_trains_on_videos_and_pictures(clips, configure, shard):
    source = clips.model_dump(mode="json")
    config = configure(data={"train": [str(shard), source], "evaluate": [source], "num_frames": 3})
    result = train(config)
    assert result.metrics.text_to_image.num_queries == 4


def test_patches_and_words_are_hidden_in_videos_and_pictures(clips, configure, shard, all_losses):
    data = {"train": [str(shard), clips.model_dump(mode="json")], "num_frames": 3}
    config = configure(*all_losses, "epochs=1", "batch_size=4", data=data)
    train(config)
    lines = [json.loads(line) for line in (config.output / "log.jsonl").read_text().splitlines()]
    assert all(line["loss/vision"] > 1 and line["loss/language"] > 1 for line in lines)


@pytest.fixture
def mixed(clips, examples, preprocess):
    """Two videos of 2 and 5 frames, and a picture."""
    from training.batches import PairBatches
    from training.config import AugmentConfig

    pairs = [*read_examples([clips])[:2], examples[0]]
    return next(PairBatches(pairs, preprocess, AugmentConfig(), batch_size=3, seed=0).epoch(0))


def test_all_frames_hide_the_same_patches(mixed, configure, model, preprocess, all_losses):
    config = configure(*all_losses)
    hider = Hider(
        config.objective,
        model,
        preprocess,
        load_tokenizer_model(config.objective.vision.tokenizer),
    )
    img_FCHW = mixed.to(torch.device("cpu")).image
    hidden = hider(mixed, img_FCHW, seed=1, first_row=0)
    assert hidden.hidden_FP.shape == hidden.code_FP.shape == (8, 16)
    at, masks = 0, []
    for count in mixed.num_frames_B:
        masks.append(hidden.hidden_FP[at])
        assert (hidden.hidden_FP[at : at + count] == masks[-1]).all()
        at += count
    assert not torch.equal(masks[0], masks[1])


def test_videos_count_by_their_frames_in_whichever_batch(
    clips, configure, exact_yaml, preprocess, all_losses
):
    """Clips of 2 to 16 frames: all in one batch, or two at a time."""
    from training.batches import PairBatches
    from training.config import AugmentConfig

    reports = []
    for batch_size in (4, 2):
        config = configure(*all_losses, f"model={exact_yaml}", f"accumulate={4 // batch_size}")
        torch.manual_seed(0)
        model = CotsModel(load_config(config.model).model)
        stepper = make_stepper(config, model, preprocess, World(0, 1, torch.device("cpu")), 4)
        pairs = read_examples([clips])
        made = PairBatches(pairs, preprocess, AugmentConfig(), batch_size=batch_size, seed=0)
        reports.append(stepper.run(list(made.epoch(0))))
    assert reports[0].losses == pytest.approx(reports[1].losses, rel=1e-5)
    assert reports[0].grad_norm == pytest.approx(reports[1].grad_norm, rel=1e-4)


def test_rows_of_pairs_are_repeated_for_their_frames(mixed):
    rows_F = per_frame(torch.arange(3), mixed)
    assert [rows_F.tolist().count(row) for row in range(3)] == list(mixed.num_frames_B)
    assert sorted(mixed.num_frames_B) == [1, 2, 5]
    assert rows_F.tolist() == sorted(rows_F.tolist())


def test_a_batch_of_videos_is_encoded_as_in_evaluation(clips, model, preprocess):
    from training.batches import PairBatches
    from training.config import AugmentConfig

    still = AugmentConfig(min_area=1.0, flip=False)
    clips = read_examples([clips])
    (batch,) = PairBatches(clips, preprocess, still, batch_size=4, seed=0).epoch(0)
    model = model.eval()
    with torch.no_grad():
        image_FD = model.image.feature(preprocess.normalise(batch.image))
        image_BE = model.project_image(image_FD)
    at = 0
    expected = []
    for count in batch.num_frames_B:
        expected.append(image_BE[at : at + count].mean(0))
        at += count
    expected_BE = torch.nn.functional.normalize(torch.stack(expected), dim=1)
    with torch.no_grad():
        got_BE = project_images(model, image_FD, batch)
    torch.testing.assert_close(got_BE, expected_BE)


def test_a_broken_video_is_named(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    example = Example("a", Location(str(tmp_path / "a.mp4")), ("x",), "video")
    with pytest.raises(
        BrokenExampleError, match=r"video a in .*a\.mp4: the video cannot"
    ) as caught:
        example.frames()
    assert caught.value.reason == "damaged"
    gone = dataclasses.replace(example, location=Location(str(tmp_path / "b.mp4")))
    with pytest.raises(BrokenExampleError) as caught:
        gone.picture()
    assert caught.value.reason == "missing"


@pytest.mark.slow
def test_real_clips_are_scored(shared_data, tiny_checkpoint):
    folder = shared_data / "videos"
    source = SourceConfig(path=str(folder / "captions.json"), image_root=folder)
    metrics = embed(Encoder.load(tiny_checkpoint, device="cpu"), read_examples([source])).metrics()
    assert metrics.text_to_image.num_queries == 24
