# SPDX-License-Identifier: Apache-2.0
"""What the two models in torch share and test_reference.c knows of: DIR/{model.json, batch.json, NAME.f64} in, DIR/NAME.SUFFIX.f64 and DIR/loss.json out; and the parts of a Llama
that have nothing to do with rounding.
"""
import json

import torch

torch.set_num_threads(1)


folder, config, batch = "", {}, []


def take(name):
    """What follows is about this folder."""
    global folder, config, batch
    folder = name
    with open(f"{folder}/model.json") as f:
        config = json.load(f)
    with open(f"{folder}/batch.json") as f:
        batch = json.load(f)


def weights():
    """Double precision, as they lie in the files."""
    return {name: torch.from_file(f"{folder}/{name}.f64", shared=False, size=rows * cols, dtype=torch.float64).clone().reshape(rows, cols)
            for name, (rows, cols) in config["tensors"].items()}


def write(gradients, suffix):
    for name, g in gradients.items():
        with open(f"{folder}/{name}.{suffix}.f64", "wb") as f:
            f.write(g.double().contiguous().numpy().tobytes())


def write_loss(loss):
    with open(f"{folder}/loss.json", "w") as f:
        json.dump({"loss": loss}, f)


def labelled():
    return sum(x >= 0 for s in batch for x in s["labels"])


def tensors_of(sequences):
    """ids, labels, documents, positions of sequences put one behind the other; documents are numbers, different ones for different documents."""
    ids, labels, documents, positions = [], [], [], []
    for s in sequences:
        for i, (token, label) in enumerate(zip(s["ids"], s["labels"])):
            begin = max(b for b in s["starts"] if b <= i)
            documents.append(len(ids) - (i - begin))
            positions.append(i - begin)
            ids.append(token)
            labels.append(label)
    return [torch.tensor(t) for t in (ids, labels, documents, positions)]


def rotate(x, positions):
    """RoPE on halves; x [T, heads, D].  The tables are taken in double precision."""
    half = config["head_dim"] // 2
    frequency = torch.tensor([config["theta"] ** (-2.0 * i / config["head_dim"]) for i in range(half)], dtype=torch.float64)
    angle = positions[:, None].double() * frequency[None, :]
    cos, sin = angle.cos()[:, None, :].to(x.dtype), angle.sin()[:, None, :].to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def allowed(documents):
    """[T, T]: causal, inside documents."""
    order = torch.arange(len(documents))
    return (order[:, None] >= order[None, :]) & (documents[:, None] == documents[None, :])


def norm(x, w):
    return x / torch.sqrt((x * x).mean(dim=1, keepdim=True) + config["eps"]) * w[0]
