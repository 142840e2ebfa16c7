"""Blocks that are recomputed or compiled train the same weights under the same names."""

import shutil
from collections import Counter

import pytest
import torch

from cots_model.config import ImageTowerConfig, ModelConfig
from cots_model.errors import ConfigError
from cots_model.model import CotsModel
from cots_model.testing import make_tokenizer, tiny_model_config
from training.batches import PairBatches
from training.config import AugmentConfig
from training.engine import blocks
from training.engine.blocks import check_compiles, checkpoint_blocks, compile_blocks
from training.engine.hiding import Hider
from training.engine.stepper import Stepper
from training.engine.world import World
from training.objective import Objective

CPU = torch.device("cpu")
FULL = ("objective.task.weight=1", "objective.language.weight=1")
# torch's compiler looks at the gradients of what it is given
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


@pytest.fixture
def batches(examples, preprocess):
    made = PairBatches(examples, preprocess, AugmentConfig(), batch_size=8, seed=0)
    return list(made.epoch(0))


@pytest.fixture
def no_compiler(monkeypatch) -> None:
    """Compiles as far as autograd goes, and runs that as it is: exact, and quickly made."""
    monkeypatch.setattr(blocks, "COMPILER", "aot_eager")
    torch.compiler.reset()


@pytest.fixture
def make(configure, preprocess, model):
    """A stepper on the same first weights; the tiny model has dropout in its text tower."""
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    def stepper(*overrides: str) -> Stepper:
        config = configure(*FULL, *overrides)
        fresh = CotsModel(model.config)
        fresh.load_state_dict(weights)
        torch.manual_seed(0)  # heads
        objective = Objective(fresh, config.objective)
        hider = Hider(config.objective, fresh, preprocess, None)
        return Stepper(config, objective, hider, World(0, 1, CPU), steps_per_epoch=4)

    return stepper


def trained(stepper: Stepper, batches) -> dict[str, torch.Tensor]:
    for batch in batches[:3]:
        stepper.run([batch])
    return stepper.objective.state_dict() | stepper.queues.state_dict()


def assert_same(ours, theirs) -> None:
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def counted(stepper: Stepper) -> Counter[str]:
    """Forward passes of the first block of each tower."""
    calls: Counter[str] = Counter()
    model = stepper.objective.model
    parts = {"image": model.image.trunk.blocks[0].mlp, "text": model.text.trunk.encoder.layer[0]}
    parts["text"] = parts["text"].intermediate
    for name, part in parts.items():
        part.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
    return calls


def test_recomputed_blocks_train_the_same_weights(make, batches):
    plain, saving = make(), make("engine.activation_checkpointing=true")
    once, twice = counted(plain), counted(saving)
    assert_same(trained(saving, batches), trained(plain, batches))
    assert once == {"image": 3, "text": 6}  # captions also with hidden words
    assert twice == {"image": 6, "text": 12}


@pytest.mark.slow
@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("recompute", ["false", "true"])
def test_compiled_blocks_train_the_same_weights(make, batches, recompute):
    torch._dynamo.utils.counters.clear()
    ours = make("engine.compile=true", f"engine.activation_checkpointing={recompute}")
    assert_same(trained(ours, batches), trained(make(), batches))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.slow
@pytest.mark.usefixtures("no_compiler")
def test_patches_are_hidden_from_compiled_blocks(model):
    img_BCHW, mask_token_D = torch.randn(2, 3, 32, 32), torch.ones(32)
    hidden_BP = torch.arange(16).repeat(2, 1) < 6
    model.eval()
    with torch.no_grad():
        expected = model.image.masked_patches(img_BCHW, hidden_BP, mask_token_D)
        compile_blocks(model)
        model.image(img_BCHW)  # compiled before anything is hidden
        assert torch.equal(model.image.masked_patches(img_BCHW, hidden_BP, mask_token_D), expected)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_generated_code_trains_nearly_the_same_weights(make, batches):
    """Sums in another order; without dropout, whose random numbers are others."""
    torch.compiler.reset()
    plain, compiled = make(), make("engine.compile=true")
    for stepper in (plain, compiled):
        for part in stepper.objective.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
    ours, theirs = trained(compiled, batches[:2]), trained(plain, batches[:2])
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_without_a_compiler_it_says_what_to_do(monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    torch.compiler.reset()
    with pytest.raises(ConfigError, match=r"does not work on cpu .* or set engine\.compile=false"):
        check_compiles(CPU)


def test_a_network_that_cannot_recompute_is_refused():
    tiny = tiny_model_config(make_tokenizer().get_vocab_size())
    image = ImageTowerConfig(arch="dla46_c", image_size=32)
    model = CotsModel(ModelConfig(name="deep-layers", image=image, text=tiny.text))
    with pytest.raises(ConfigError, match="'dla46_c' cannot recompute"):
        checkpoint_blocks(model)
