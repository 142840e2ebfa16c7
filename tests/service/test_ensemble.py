"""An ensemble of checkpoints is served like any other."""

import base64

import numpy as np

from cots_model.encoder import Encoder
from cots_model.ensemble import write_ensemble
from cots_model.images import decode_image
from cots_model.testing import make_tiny_checkpoint
from index_builder.build import build_gallery
from index_builder.options import BuildOptions
from service.settings import Settings
from service.state import Resources
from tests.service.conftest import Running, picture


def test_an_ensemble_answers_texts_pictures_and_items(checkpoint, tmp_path) -> None:
    for number in range(6):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(picture(number))
    other = make_tiny_checkpoint(tmp_path / "other", seed=1, embed_dim=16)
    write_ensemble([checkpoint, other], tmp_path / "both")
    settings = Settings(
        galleries=tmp_path / "galleries", checkpoint=str(tmp_path / "both"), device="cpu", port=0
    )
    encoder = Encoder.load(tmp_path / "both", device="cpu")
    gallery = tmp_path / "galleries" / "pets"
    build_gallery(
        BuildOptions(sources=(str(tmp_path / "photos"),), gallery=gallery, workers=1), encoder
    )
    image_NE = encoder.encode_images([decode_image(picture(number)) for number in range(6)])
    with Running(settings, Resources.load(settings)) as running:
        assert running.client.get("/readyz").status_code == 200
        info = running.client.get("/v1/galleries/pets").json()
        assert (info["dim"], info["model"]) == (48, "tiny+tiny")
        for query, vector_E in (
            ("a red dog", encoder.encode_texts(["a red dog"])[0]),
            ({"image": base64.b64encode(picture(3)).decode()}, image_NE[3]),
            ({"item_id": "2.jpg"}, image_NE[2]),
        ):
            answer = running.client.post("/v1/galleries/pets/search", json={"query": query})
            hits = {hit["id"]: hit["score"] for hit in answer.json()["hits"]}
            expected = image_NE @ vector_E
            found = [hits[f"{number}.jpg"] for number in range(6)]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
            assert next(iter(hits)) == f"{expected.argmax()}.jpg"
