"""Runs exported programs where neither this package nor flax can be imported.

python alone.py FOLDER INPUTS.npz OUTPUTS.npz     (in the folder of run_programs.py)
"""

import sys

import numpy as np

FORBIDDEN = {"align3r_jax", "flax", "orbax", "safetensors", "optax", "chex", "cv2"}


class _Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in FORBIDDEN:
            raise ImportError(f"{name} must not be needed")


sys.meta_path.insert(0, _Refuse())


def main(folder, inputs, outputs):
    sys.path.insert(0, folder)
    import run_programs

    programs = run_programs.load(folder)
    given = np.load(inputs)
    features = programs.encode(given["images"], given["prior_maps"], given["has_prior"])
    without = programs.encode(given["images"])
    predictions = programs.decode(features, given["pairs"])
    np.savez(
        outputs,
        **predictions,
        **{f"features_{name}": value for name, value in features.items()},
        without=without["decoder_tokens"],
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
