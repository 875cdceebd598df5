"""Two runs with run.deterministic=true on the pretended GPU, compared bit for bit.

`python -m tests.torture.on_pretended_gpu FOLDER STEPS`; 77 where there is no pretended GPU. A
process of its own, since the device must be made before torch is imported.
"""

import sys
from pathlib import Path

from tests.pretended_gpu import guard


def main(folder: Path, steps: int) -> int:
    if why := guard.why_not():
        print(why)
        return 77
    library = guard.load()
    from torch.optim import optimizer  # pyright: ignore
    from torch.utils import _foreach_utils

    library.register_device()

    from tests.pretended_gpu.pretend import pretended
    from tests.pretended_gpu.tensor import OnGpu

    for module in (optimizer, _foreach_utils):
        module._foreach_supported_types.append(OnGpu)
    with pretended():
        return _compare(folder, steps)


def _compare(folder: Path, steps: int) -> int:
    from moebench.data.corpus import prepare
    from moebench.experiment import run_experiment
    from moebench.train import kernels
    from tests.results import results
    from tests.torture.runs import configs

    kernels.SIDE["cuda"] = 256  # the product by which a GPU's peak is measured is long for a CPU
    words = ("run.device=cuda", "run.deterministic=true", "train.precision=fp32")
    words += (f"train.steps={steps}", "train.eval_every=0", f"run.checkpoint_every={steps}")
    [config] = configs("global", *words, "data.max_epochs=1000")
    corpus = prepare(config.data)
    one, other = (results(run_experiment(config, corpus, folder / again)) for again in "ab")
    if one != other:
        print(f"{sum(one[part] != other[part] for part in one)} of {len(one)} parts differ")
    return one != other


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
