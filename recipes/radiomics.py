"""Radiomics: features of a region of every volume, and a model on them: copy this file, and change it as you like.

    python recipes/radiomics.py
    python recipes/radiomics.py uri=cohort mask=tumour target=response features.wavelet=coif1
    python recipes/radiomics.py model._target_=sklearn.ensemble.RandomForestClassifier ~model.max_iter ~model.C

From an installed radiodata: ``python -m radiodata.recipes.radiomics``; needs ``radiodata[radiomics]``. Everything of a
run lies in ``runs/radiomics/<date>_<time>``: features.csv, scores.json. Folds never part the volumes of a subject.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig

from radiodata.errors import ConfigError, RadiodataError
from radiodata.hydra import config_dir, require_values

if TYPE_CHECKING:
    import pandas as pd
    from omegaconf import DictConfig

    from radiodata import Cohort


@hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="radiomics")  # type: ignore[untyped-decorator]
def main(cfg: DictConfig) -> float:
    """Compute features, fit and score a model; return its balanced accuracy."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        require_values(cfg)
        cohort = opened(cfg.uri)
        table = features(cfg, cohort)
        scores = score(cfg, table, target_of(cohort, cfg))
    except RadiodataError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    table.to_csv(folder / "features.csv")
    (folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    print(
        f"{len(table)} volumes, {table.shape[1] - 1} features: balanced accuracy {scores['balanced_accuracy']:.3f} "
        f"(chance {scores['chance']:.3f}) | {folder / 'features.csv'} | {folder / 'scores.json'}",
        flush=True,
    )
    return float(scores["balanced_accuracy"])


def opened(uri: str | None) -> Cohort:
    """The cohort, or the demo."""
    from radiodata import Cohort
    from radiodata.demo.cohort import ensure_demo

    return Cohort(uri or ensure_demo())


def features(cfg: DictConfig, cohort: Cohort) -> pd.DataFrame:
    """Features of every volume, one row each, with its subject; written into the table of volumes if asked."""
    from omegaconf import OmegaConf

    from radiodata.radiomics import Radiomics

    settings: Any = OmegaConf.to_container(cfg.features, resolve=True)
    transform = Radiomics(cohort.uri, cfg.mask, cfg.label, **settings)
    table = cohort[cfg.image].lazy().map(transform).to_obs(workers=cfg.workers)
    made = [name for name in table.columns if str(name).startswith(transform.prefix)]
    if cfg.store:
        cohort.update_obs(cfg.image, table[made])
    return table[["obs_subject_id", *made]]


def target_of(cohort: Cohort, cfg: DictConfig) -> pd.Series[Any]:
    """Class of each volume."""
    obs = cohort[cfg.image].obs
    if cfg.target in obs.columns:
        return obs[cfg.target]
    if cfg.target not in cohort.obs_meta.columns:
        raise ConfigError(
            f"target={cfg.target!r} is no column of obs_meta {list(cohort.obs_meta.columns)}, nor of {cfg.image!r}"
        )
    return obs["obs_subject_id"].map(cohort.obs_meta[cfg.target])


def score(cfg: DictConfig, table: pd.DataFrame, target: pd.Series[Any]) -> dict[str, Any]:
    """Scores of repeated, stratified cross-validation by subject."""
    import numpy as np
    from hydra.utils import instantiate
    from sklearn.impute import SimpleImputer
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    values = table.drop(columns="obs_subject_id").to_numpy(float)
    classes = target.loc[table.index].astype(str).to_numpy()
    least = int(np.unique(classes, return_counts=True)[1].min())
    if least < 2:
        raise ConfigError(f"target={cfg.target!r}: a class has {least} volume, and a fold needs one of each: 2 or more")
    found = []
    for repeat in range(cfg.repeats):
        folds = StratifiedGroupKFold(min(cfg.folds, least), shuffle=True, random_state=cfg.seed + repeat)
        model = make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler(), instantiate(cfg.model))
        predicted = cross_val_predict(model, values, classes, groups=table["obs_subject_id"], cv=folds)
        found.append(float(balanced_accuracy_score(classes, predicted)))
    return {
        "balanced_accuracy": float(np.mean(found)),
        "repeats": found,
        "chance": 1 / len(np.unique(classes)),
        "volumes": len(table),
        "features": values.shape[1],
    }


if __name__ == "__main__":
    main()
