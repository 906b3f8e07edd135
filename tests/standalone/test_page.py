"""docs/standalone.md, in environments without OpenMMLab: its commands and its code."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from environment import ROOT, link, link_mmlocal, run

PAGE = (ROOT / "docs" / "standalone.md").read_text()
PLACEHOLDER = "elsa_swin_t-xxxxxxxx.pth"
ABSENT = ("cv2", "matplotlib", "mmcv", "mmdet", "mmpretrain", "mmseg")
OFFICIAL = ROOT / "tests" / "data" / "elsa_statedicts" / "elsa_cls_T.json"


def code_of(heading: str, page: str = PAGE) -> str:
    """The Python of the parts of the page from one heading to the next ones of libraries."""
    text = page.partition(f"\n## {heading}\n")[2]
    text = re.split(r"^## (?:timm|torchvision)$", text, flags=re.M)[0]
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.S | re.M))


def script(code: str, *absent: str) -> str:
    """Code that runs only where some modules are absent, and that imports none of them."""
    check = "import importlib.util\n"
    check += "".join(f"assert importlib.util.find_spec({name!r}) is None\n" for name in absent)
    return check + code


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """PyTorch, and MMEngine with what mmengine-lite requires."""
    folder = tmp_path_factory.mktemp("plain")
    link_mmlocal(folder)
    link(folder, "torch", "msgpack")
    return folder


@pytest.fixture(scope="module")
def with_timm(tmp_path_factory) -> Path:
    """The same, with timm and torchvision."""
    pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("with_timm")
    link_mmlocal(folder)
    link(folder, "timm", "torchvision")
    return folder


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> Path:
    """A folder with an official checkpoint of ELSA-Swin-T, in which every number is 0.01."""
    folder = tmp_path_factory.mktemp("user")
    shapes = json.loads(OFFICIAL.read_text())["state_dict"]
    tensors = {name: torch.tensor(0.01).expand(shape) for name, shape in shapes.items()}
    torch.save({"state_dict": tensors}, folder / "official_elsa_swin_tiny.pth")
    return folder


@pytest.fixture(scope="module")
def converted(official, plain) -> tuple[Path, str]:
    """The folder and the name of the file that the page's command writes."""
    (command,) = re.findall(r"^mmlocal (convert .*)$", PAGE, re.M)
    output = run(plain, "-m", "mmlocal", *shlex.split(command), cwd=official)
    (name,) = re.findall(r"^wrote (elsa_swin_t-[0-9a-f]{8}\.pth)$", output, re.M)
    return official, name


def test_every_block_runs_somewhere():
    parts = [code_of(heading) for heading in ("Features of an image", "timm", "torchvision")]
    assert all(parts)
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M):
        assert any(block in part for part in parts)
    assert PLACEHOLDER in parts[0]
    assert PLACEHOLDER in parts[1]


AFTER = """
for name, tensor in checkpoint["state_dict"].items():
    assert torch.all(tensor == 0.01), name
loaded = MODELS.build(checkpoint["meta"]["backbone_cfg"] | dict(init_cfg=weights))
loaded.init_weights()
assert all(torch.all(p == 0.01) for p in loaded.parameters())
assert scores.shape == (1, 1000)
assert loss.isfinite()

from mmlocal.models.backbones import DWNet, ELSAVOLO, GhostDeiT, LocalSwin, QnAViT, VOLO

small = dict(embed_dims=16, depths=(1, 1), num_heads=(2, 2))
swin = small | dict(out_indices=(0, 1))
kinds = {
    DWNet: dict(embed_dims=16, depths=(1, 1)),
    ELSASwin: small,
    ELSAVOLO: small,
    GhostDeiT: dict(embed_dims=16, num_layers=2, num_heads=2),
    LocalSwin: small,
    QnAViT: dict(
        embed_dims=16, attn_depths=(0, 1), qna_depths=(1, 0), attn_heads=(2, 2), qna_heads=(2, 2)
    ),
    VOLO: small,
}
for kind, arch in kinds.items():
    extra = dict(window_sizes=(7, 7)) if kind is QnAViT else {}
    net = kind(arch, out_indices=(0, 1), **extra)
    net.init_weights()
    maps = net(torch.rand(2, 3, 40, 56))
    sum(x.sum() for x in maps if torch.is_tensor(x)).backward()

from mmlocal.cli.convert import convert

convert(QNA, ".", "qna", dry_run=True)  # reads Flax's file without JAX
print("backbones:", len(kinds))
""".replace("QNA", repr(str(ROOT / "tests" / "data" / "qna_ckpt" / "checkpoint_375300")))


def test_plain_pytorch(plain, converted):
    folder, name = converted
    code = code_of("Features of an image").replace(PLACEHOLDER, name) + AFTER
    output = run(plain, "-c", script(code, *ABSENT, "timm", "torchvision"), cwd=folder)
    assert output.splitlines()[-1] == "backbones: 7"


def test_timm_and_torchvision(with_timm, converted):
    folder, name = converted
    code = (
        code_of("timm").replace(PLACEHOLDER, name)
        + """
assert [tuple(x.shape) for x in maps] == [(1, 192, 28, 28), (1, 384, 14, 14), (1, 768, 7, 7)]
assert torch.all(features.model.backbone.stages[3].blocks[1].mlp.fc2.weight == 0.01)
assert torch.all(model.backbone.norm3.weight == 0.01) and model.head.fc.out_features == 3
"""
    )
    code += (
        code_of("torchvision")
        + """
assert sorted(maps) == ["stride32", "stride8"]
assert maps["stride8"].shape == (1, 28, 28, 128)
"""
    )
    output = run(with_timm, "-c", script(code, *ABSENT), cwd=folder)
    names = re.findall(r"'(\w+)'", output.splitlines()[0])
    table = re.findall(r"`((?:elsa|qna)\w+)`", PAGE.partition("| name |")[2].partition("\n\n")[0])
    assert sorted(names) == sorted(table)


def reachable(python: Path, folder: Path) -> str | None:
    """Why pip cannot get mmengine-lite; ``None`` if it can."""
    command = [python, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, "mmengine-lite"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1] if done.returncode else None


@pytest.mark.slow
def test_install_line_in_a_new_environment(tmp_path, converted):
    """The page's install line in a real environment, which borrows PyTorch."""
    sys.path.insert(0, str(ROOT / "tests" / "packaging"))
    from checkout import copy_tree

    (line,) = re.findall(r"^pip (install .*standalone.*)$", PAGE, re.M)
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    if reason := reachable(python, tmp_path / "downloads"):
        pytest.skip(f"pip does not reach a package index: {reason}")
    borrowed = tmp_path / "borrowed"
    borrowed.mkdir()
    link(borrowed, "torch", "msgpack")
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(f"{borrowed}\n")
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    variables["MMLOCAL_BUILD_EXT"] = "0"  # other tests compile the kernels

    def call(*command: object, cwd: Path) -> str:
        done = subprocess.run(
            list(map(str, command)), cwd=cwd, env=variables, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call(python, "-m", "pip", *shlex.split(line), cwd=copy_tree(tmp_path / "clone"))
    installed = call(python, "-m", "pip", "list", cwd=tmp_path)
    assert "mmengine-lite" in installed
    folder, name = converted
    # The test above runs the rest.
    code = code_of("Features of an image", PAGE.partition("\n## Fine-tuning\n")[0])
    call(python, "-c", script(code.replace(PLACEHOLDER, name), *ABSENT, "timm"), cwd=folder)
    assert "(mmengine-lite)" in call(environment / "bin" / "mmlocal", "info", cwd=folder)
    shutil.rmtree(environment)
