"""Lightning's DeepSpeed strategy asks for CUDA; DeepSpeed itself does not. Tests leave out the places that ask."""

from typing import Any

from vol3d.training.sharding import ZeroStrategy


class ZeroOnCpu(ZeroStrategy):
    """The overlay's ZeroStrategy on gloo; in float32 unless `mixed`."""

    def __init__(self, stage: int, *, mixed: bool = False) -> None:
        from importlib.resources import files

        import yaml

        name = {2: "deepspeed_zero2", 3: "deepspeed_zero3_offload"}[stage]
        recipe = yaml.safe_load((files("vol3d.recipes") / "overlays" / f"{name}.yaml").read_text())
        config: dict[str, Any] = recipe["trainer"]["strategy"]["init_args"]["config"]
        for part in ("offload_param", "offload_optimizer"):  # the CPU is where everything is already
            config["zero_optimization"].pop(part, None)
        config["zero_optimization"] |= {"overlap_comm": False}
        config["torch_autocast"]["enabled"] = mixed
        super().__init__(config, process_group_backend="gloo")

    def setup_environment(self) -> None:
        from lightning.pytorch.strategies import DDPStrategy

        super(DDPStrategy, self).setup_environment()
        self.setup_distributed()

    def setup_distributed(self) -> None:
        import deepspeed

        # Its own sum between processes of one machine would be compiled at the first call; gloo needs no compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def _setup_model_and_optimizer(self, model: Any, optimizer: Any, lr_scheduler: Any = None) -> tuple[Any, Any]:
        import deepspeed

        engine, wrapped, _, _ = deepspeed.initialize(
            config=self.config, model=model, model_parameters=[p for p in model.parameters() if p.requires_grad],
            optimizer=optimizer, lr_scheduler=lr_scheduler, dist_init_required=False,
        )  # fmt: skip
        return engine, wrapped

    def _initialize_deepspeed_inference(self, model: Any) -> None:
        import deepspeed

        config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": self.config["zero_optimization"]}
        self.model = deepspeed.initialize(config=config, model=model, model_parameters=[], dist_init_required=False)[0]
