"""Run by `benchmark_peer` with the interpreter and in the folder of a PyTorch checkout: times it.

Needs PyTorch, NumPy and the checkout, nothing of ours. Names used, all of its README:
`dust3r.model.AsymmetricCroCo3DStereo` (`from_pretrained`, or constructor arguments as its released
files name them), `dust3r.inference.inference`, `dust3r.cloud_opt.global_aligner` and
`GlobalAlignerMode`, `scene.compute_global_alignment`. Prints one line of JSON last.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

# DUSt3R's released 512 network with the dense head.
_ARGUMENTS: dict[str, Any] = {
    "pos_embed": "RoPE100", "patch_embed_cls": "PatchEmbedDust3R", "img_size": (512, 512),
    "head_type": "dpt", "output_mode": "pts3d", "depth_mode": ("exp", -float("inf"), float("inf")),
    "conf_mode": ("exp", 1, float("inf")), "enc_embed_dim": 1024, "enc_depth": 24,
    "enc_num_heads": 16, "dec_embed_dim": 768, "dec_depth": 12, "dec_num_heads": 12,
    "landscape_only": False,
}  # fmt: skip


def main(arguments: list[str]) -> dict[str, Any]:
    """Returns what is printed: {"torch", "device"}, {} or {"missing": sentence}."""
    try:
        import numpy
        import torch
    except ImportError as error:
        return {"missing": f"{error}; install PyTorch there, or name a Python with --peer_python."}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        from dust3r.inference import inference
        from dust3r.model import AsymmetricCroCo3DStereo
    except Exception as error:  # whatever a foreign module raises while it is read
        return {"missing": f"its modules cannot be imported ({type(error).__name__}: {error})."}
    if arguments[0] == "check":
        return {"torch": str(torch.__version__), "device": device}

    with numpy.load(arguments[1], allow_pickle=False) as file:
        given = {name: file[name] for name in file.files}
    facts = json.loads(str(given["facts"]))
    try:
        if facts["weights"]:
            model = AsymmetricCroCo3DStereo.from_pretrained(facts["weights"])
        else:
            model = AsymmetricCroCo3DStereo(**_ARGUMENTS)
        model = model.to(device).eval()
    except Exception as error:  # ditto
        return {"missing": f"its network cannot be made ({type(error).__name__}: {error})."}
    views = _views(torch, given)
    pairs = [(views[i], views[j]) for i, j in given["pairs"].tolist()]

    def predict(chosen: list[Any]) -> Any:
        return inference(chosen, model, device, batch_size=facts["batch"])

    found: dict[str, Any] = {"pairs": _timed(torch, device, predict, pairs, warm=pairs[:1])}
    if facts["iterations"]:
        try:
            found["align"] = _align(torch, device, given, views, facts["iterations"])
        except Exception as error:  # ditto
            found["align"] = {"failed": f"{type(error).__name__}: {error}"}
    with open(arguments[2], "w") as output:
        json.dump(found, output)
    return {}


def _views(torch: Any, given: dict[str, Any]) -> list[dict[str, Any]]:
    """The frames as its data loader gives them: (1, 3, H, W) in [-1, 1]; the prior for Align3R."""
    import numpy

    views = []
    for index, image in enumerate(given["images"]):
        height, width = image.shape[:2]
        pixels = numpy.ascontiguousarray(image.transpose(2, 0, 1)[None], numpy.float32) / 127.5 - 1
        view = {
            "img": torch.from_numpy(pixels),
            "true_shape": numpy.int32([[height, width]]),
            "idx": index,
            "instance": str(index),
        }
        if "prior" in given:
            maps = numpy.repeat(given["prior"][index][None, ..., None], 3, axis=-1)
            view["pred_depth"] = torch.from_numpy(numpy.ascontiguousarray(maps, numpy.float32))
        views.append(view)
    return views


def _timed(torch: Any, device: str, function: Any, argument: Any, warm: Any) -> dict[str, float]:
    function(warm)
    _wait(torch, device)
    wall, cpu = time.perf_counter(), time.process_time()
    function(argument)
    _wait(torch, device)
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def _align(
    torch: Any, device: str, given: dict[str, Any], views: list[Any], iterations: int
) -> dict[str, float]:
    """Both aligners get the same point maps. "once": making the scene and its start."""
    from dust3r.cloud_opt import GlobalAlignerMode, global_aligner

    pairs = given["all_pairs"].tolist()

    def side(k: int) -> dict[str, Any]:
        chosen = [views[pair[k]] for pair in pairs]
        return {
            "img": torch.cat([view["img"] for view in chosen]),
            "true_shape": torch.from_numpy(_stacked([view["true_shape"] for view in chosen])),
            "idx": [view["idx"] for view in chosen],
            "instance": [view["instance"] for view in chosen],
        }

    def prediction(k: int, name: str) -> dict[str, Any]:
        return {
            name: torch.from_numpy(given[f"pointmap{k}"]),
            "conf": torch.from_numpy(given[f"confidence{k}"]),
        }

    output = {
        "view1": side(0), "view2": side(1), "pred1": prediction(1, "pts3d"),
        "pred2": prediction(2, "pts3d_in_other_view"), "loss": None,
    }  # fmt: skip
    found = {}
    wall, cpu = time.perf_counter(), time.process_time()
    mode = GlobalAlignerMode.PointCloudOptimizer
    scene = global_aligner(output, device=device, mode=mode, verbose=False)
    scene.compute_global_alignment(init="mst", niter=0, schedule="linear", lr=0.01)
    _wait(torch, device)
    found["once_seconds"] = time.perf_counter() - wall
    found["once_cpu_seconds"] = time.process_time() - cpu
    wall, cpu = time.perf_counter(), time.process_time()
    scene.compute_global_alignment(init=None, niter=iterations, schedule="linear", lr=0.01)
    _wait(torch, device)
    return found | {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def _stacked(parts: list[Any]) -> Any:
    import numpy

    return numpy.concatenate(parts)


def _wait(torch: Any, device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    print("\n" + json.dumps(main(sys.argv[1:])))
