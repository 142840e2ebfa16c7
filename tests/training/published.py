"""The inputs of the published numbers: B = 4, N = 10, d = 8, in float64."""

import torch


def feat(n: int, d: int, a: float, b: float, c: float) -> torch.Tensor:
    i = torch.arange(n, dtype=torch.float64)[:, None]
    j = torch.arange(d, dtype=torch.float64)[None, :]
    return norm(torch.sin(a + b * i + c * j * (i + 1)))


def norm(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=1, keepdim=True)


def published_inputs() -> dict[str, torch.Tensor]:
    image_BE, text_BE = feat(4, 8, 0.1, 0.7, 0.9), feat(4, 8, 0.3, 0.5, 1.1)
    return {
        "image_BE": image_BE,
        "text_BE": text_BE,
        "image_key_BE": norm(image_BE + 0.3 * feat(4, 8, 0.2, 0.4, 1.3)),
        "text_key_BE": norm(text_BE + 0.3 * image_BE + 0.3 * feat(4, 8, 0.6, 0.8, 0.7)),
        "image_queue_NE": feat(10, 8, 0.9, 0.35, 0.55),
        "text_queue_NE": feat(10, 8, 0.4, 0.65, 0.45),
        "negative_BN": torch.ones(4, 10, dtype=torch.bool),
    }
