"""Configs as a training gets them."""

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from avmae.cli.config import CONF, plain


def composed(*overrides: str) -> dict:
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("train", [*overrides, "run_dir=run"], return_hydra_config=True)
    from hydra.core.hydra_config import HydraConfig

    HydraConfig.instance().set_config(config)
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    return plain(config)
