#!/usr/bin/env bash
# A project of a user's own, with radiodata's wheel installed: user_project.sh PYTHON COHORT FOLDER
set -euo pipefail
python=$1 cohort=$2
mkdir -p "$3/conf/data" && cd "$3"

cat > train.py <<'PY'
import hydra
from hydra.utils import instantiate


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg):
    if "what" in cfg.data:
        return print("mine:", cfg.data.what)
    data = instantiate(cfg.data)
    batch = next(iter(data.train_dataloader()))
    print("batch:", tuple(batch["image"].shape), type(data.split).__name__)


main()
PY
echo "lr: 0.1" > conf/config.yaml
small="data.uri=$cohort data.patch_size=16 data.num_workers=0"

said() { grep -q -- "$1" out || { echo "expected '$1' in:"; cat out; exit 1; }; }
run() { "$python" train.py "$@" > out 2>&1 || { cat out; return 1; }; }

run +data=ct_isotropic $small; said "batch: (2, 1, 16, 16, 16) Fractions"
run +data=ct_isotropic +split=kfold data.split.k=3 +augment=nnunet +loader=threads $small; said "KFold"

# `data` in the defaults list: swapped without a plus
printf 'defaults:\n  - data: ct_isotropic\n  - _self_\nlr: 0.1\n' > conf/config.yaml
run $small; said "batch:"
run data=ssl data.uri="$cohort" data.patch_size=16 data.num_workers=0; said "batch: (4, 1, 16, 16, 16)"

# a file of the user's own comes first
echo "what: shadowed" > conf/data/ct_isotropic.yaml
run; said "mine: shadowed"
rm conf/data/ct_isotropic.yaml

# a mandatory value that is missing is named
if run data=hippocampus; then echo "a missing value passed"; exit 1; fi
said "data.uri"

run --multirun $small data.seed=1,2; said "batch:"
[ "$(grep -c "batch:" out)" = 2 ]
echo "a user's own project works"
