"""First weights of image networks, from files in the formats other projects publish."""

from pathlib import Path

import onnx
import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from transformers import Dinov2Config, Dinov2Model

from cots_model.config import ImageTowerConfig, ModelConfig, NetworkConfig
from cots_model.errors import InputError
from cots_model.model import CotsModel
from cots_model.testing import make_tokenizer, tiny_model_config
from training.config import InitConfig
from training.image_weights import read_onnx, weights_from_file
from training.initialise import initialise

SIZE, PATCH, WIDTH = 32, 8, 16


def export(folder: Path, model: Dinov2Model) -> Path:
    """Write the model's weights as torch's exporter lays them out in an ONNX file."""
    model.save_pretrained(folder)
    initializers, nodes = [], []

    def store(name: str, weight: torch.Tensor) -> str:
        initializers.append(onnx.numpy_helper.from_array(weight.numpy().copy(), name))
        return name

    for name, weight in load_file(folder / "model.safetensors").items():
        if weight.ndim == 2:
            module = name.removesuffix(".weight").replace(".", "/").replace("layer/", "layer.")
            matrix = store(f"onnx::MatMul_{len(initializers)}", weight.T.contiguous())
            place = f"/backbone/{module}/MatMul"
            nodes.append(onnx.helper.make_node("MatMul", ["x", matrix], [place], name=place))
        elif name == "embeddings.position_embeddings":
            store("onnx::Concat_1", weight[:, :1])
            store("onnx::Reshape_2", weight[:, 1:])
        else:
            store(f"backbone.{name}", weight)
    graph = onnx.helper.make_graph(nodes, "vit", [], [], initializer=initializers)
    onnx.save(onnx.helper.make_model(graph), folder / "vit.onnx")
    return folder / "vit.onnx"


@pytest.fixture(scope="module")
def dinov2() -> Dinov2Model:
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=PATCH,
        layerscale_value=0.5,
    )
    model = Dinov2Model(config).eval()
    for parameter in model.parameters():  # norms and biases start as ones and zeros
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def exported(dinov2, tmp_path_factory) -> Path:
    return export(tmp_path_factory.mktemp("onnx"), dinov2)


def vision_transformer(depth: int, image_size: int = SIZE) -> VisionTransformer:
    options = {"patch_size": PATCH, "embed_dim": WIDTH, "num_heads": 2, "num_classes": 0}
    arch = "vit_small_patch14_dinov2"
    return timm.create_model(arch, depth=depth, img_size=image_size, **options).eval()


def load(network: VisionTransformer, path: Path) -> VisionTransformer:
    network.load_state_dict(weights_from_file(path, network, str(path)))
    return network


@pytest.fixture
def img_BCHW() -> torch.Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("side", [SIZE // 2, SIZE, 2 * SIZE])
@torch.inference_mode()
def test_dinov2_export_computes_what_transformers_does(dinov2, exported, side):
    img_BCHW = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    theirs = dinov2(img_BCHW).last_hidden_state
    ours = load(vision_transformer(depth=3, image_size=side), exported).forward_features(img_BCHW)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


@torch.inference_mode()
def test_shallower_network_takes_the_first_blocks_and_a_plain_norm(dinov2, exported, img_BCHW):
    hidden = dinov2(img_BCHW, output_hidden_states=True).hidden_states
    expected = torch.nn.functional.layer_norm(hidden[2], (WIDTH,), eps=1e-6)
    ours = load(vision_transformer(depth=2), exported).forward_features(img_BCHW)
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)


def test_deeper_network_is_refused(exported):
    network = vision_transformer(depth=4)
    with pytest.raises(InputError, match=r"no weight 'backbone\.encoder\.layer\.3\."):
        weights_from_file(exported, network, "x")


def test_onnx_without_position_embeddings_is_refused(tmp_path):
    path = tmp_path / "other.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], [])), path)
    with pytest.raises(InputError, match="is it a DINOv2 export"):
        weights_from_file(path, vision_transformer(depth=1), "x")


def tensor(**fields) -> onnx.TensorProto:
    return onnx.TensorProto(**{"name": "w", "data_type": onnx.TensorProto.FLOAT, **fields})


def external(location: str) -> onnx.TensorProto:
    made = tensor(dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    made.external_data.add(key="location", value=location)
    return made


@pytest.mark.parametrize(
    "damaged",
    [
        tensor(dims=[10**6, 10**6]),
        tensor(dims=[1], data_type=99),
        tensor(dims=[1], data_type=onnx.TensorProto.STRING, string_data=[b"x"]),
        external("secret.bin"),
        external("../secret.bin"),
    ],
)
def test_damaged_and_external_tensors_are_refused(tmp_path, damaged):
    (tmp_path / "secret.bin").write_bytes(b"1234")
    path = tmp_path / "x.onnx"
    graph = onnx.helper.make_graph([], "g", [], [])
    graph.initializer.append(damaged)
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(InputError, match=r"x\.onnx cannot be read as ONNX"):
        read_onnx(path)


@pytest.mark.parametrize("content", [b"not onnx", b"\xff" * 100])
def test_files_that_are_not_onnx_are_refused(tmp_path, content):
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.onnx cannot be read as ONNX"):
        read_onnx(path)


def test_registers_are_refused(dinov2, exported, tmp_path):
    model = onnx.load(exported)
    registers = torch.zeros(1, 4, WIDTH).numpy()
    name = "backbone.embeddings.register_tokens"
    model.graph.initializer.append(onnx.numpy_helper.from_array(registers, name))
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(InputError, match="register tokens"):
        weights_from_file(tmp_path, vision_transformer(depth=1), "x")


@pytest.mark.parametrize("name", ["missing.onnx", "missing", "weights.pth"])
def test_a_source_that_is_no_such_file_is_named(tmp_path, name):
    (tmp_path / "weights.pth").touch()
    with pytest.raises(InputError, match=r"'src' is no \.onnx file and no folder with one"):
        weights_from_file(tmp_path / name, vision_transformer(depth=1), "src")


def test_other_networks_have_no_file_format(tmp_path):
    network = timm.create_model("resnet18", num_classes=0)
    with pytest.raises(InputError, match="this network is ResNet: use timm"):
        weights_from_file(tmp_path, network, "src")


def test_each_network_of_a_tower_has_its_source(exported, img_BCHW):
    tiny = tiny_model_config(make_tokenizer().get_vocab_size())
    options = {"depth": 2, "patch_size": PATCH, "embed_dim": WIDTH, "num_heads": 2}
    image = ImageTowerConfig(
        arch="efficientnet_lite0",
        image_size=SIZE,
        beside=(NetworkConfig(arch="vit_small_patch14_dinov2", options=options),),
    )
    model = CotsModel(ModelConfig(name="m", image=image, text=tiny.text)).eval()
    before = {name: w.clone() for name, w in model.image.trunk.state_dict().items()}
    initialise(model, InitConfig(beside=[str(exported)]))
    expected = load(vision_transformer(depth=2), exported)
    for name, weight in expected.state_dict().items():
        assert torch.equal(model.image.beside[0].state_dict()[name], weight), name
    for name, weight in model.image.trunk.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_sources_must_be_as_many_as_networks(model, exported):
    with pytest.raises(InputError, match=r"names 1 sources; the image tower has 0 networks"):
        initialise(model, InitConfig(beside=[str(exported)]))
