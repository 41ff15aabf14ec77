"""YAML configurations of `train`: syntax, sections, values."""

import random
from collections.abc import Iterator
from pathlib import Path

import yaml

from .harness import Input
from .parts import MARK, PHANTOM, merged


def inputs(rng: random.Random) -> Iterator[Input]:
    def make_input(name: str, must: str, text: str | bytes, *more: str, names: tuple[str, ...] = ()) -> Input:
        def make(folder: Path) -> list[str]:
            (folder / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
            return ["train", "--config", str(folder / "config.yaml"), "--out", str(folder / "out"), *more]

        return Input(f"yaml/{name}", make, must, names or ("config.yaml", name.split(".")[0].split(" ")[0]))

    base = yaml.safe_dump(PHANTOM)
    yield make_input("valid", "accept", base)
    aliases = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
    )
    for name, text in {
        "list": "[]",
        "text": "hello",
        "number": "5",
        "binary": rng.randbytes(300),
        "tabs": "env:\n\tcases: []",
        "open": "env: {cases: [",
        "two documents": base + "---\n" + base,
        "utf-16": base.encode("utf-16"),
        "nul": base.encode() + b"\0",
        "deep list": "[" * 5_000,
        "deeper list": "[" * 100_000,
        "deep map": "".join(" " * n + "a:\n" for n in range(1500)),
        "undefined alias": "env: *x",
        "recursive alias": "env: &a\n  cases: *a",
        "anchors bomb": aliases,
        "anchors bomb as name": aliases + "name: *a8\n",
        "anchors bomb as cases": aliases + "env: {cases: *a8}\n",
        "anchors bomb as paper": aliases + "paper: *a8\n",
        "anchors bomb as seed": aliases + "seed: *a7\n",
        "merge key of a list": "<<: [1]\n" + base,
        "merge bomb": "".join(
            f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}], k{n}: 1}}\n" if n else "m0: &m0 {k: 1}\n"
            for n in range(8)
        ),
        "twice env": base + "\nenv: {}\nenvv: 1\n",
        "unhashable key": "? [a]\n: b",
        "date as name": "name: 2020-01-01\nseed: 2020-01-01",
        "int key": "5: 6",
        "bool key": "true: 6",
        "none key": "~: 6",
        "long key": "k" * 100_000 + ": 1",
        "long line of values": "env: {cases: [" + ", ".join(["x"] * 100_000) + "]}",
        "python tag": f"name: !!python/object/apply:os.system ['touch {MARK}']",
        "python name": "name: !!python/name:os.system",
        "python module": "name: !!python/module:os",
        "python object": f"env: !!python/object/new:os.system ['touch {MARK}']",
        "unknown tag": "env: !x {cases: []}",
        "binary tag": "name: !!binary aGVsbG8=",
        "set tag": "env: !!set {cases}",
        "omap tag": "env: !!omap [cases: x]",
        "class_path env": f"env: {{class_path: os.system, init_args: {{command: touch {MARK}}}}}",
        "class_path root": "class_path: os.system",
        "class_path ppo": "ppo: {class_path: subprocess.Popen, init_args: {args: [touch, x]}}",
        "class_path lesions": "env: {implant_lesions: {class_path: subprocess.Popen}}",
        "class_path text": "env: os.system",
        "class_path test": "test: subprocess.Popen",
        "env is list": "env: []",
        "env is text": "env: hello",
        "env is number": "env: 5",
        "env is null": "env: null",
        "ppo is null": "ppo: null",
        "ppo is list": "ppo: [1, 2]",
        "print_config inside": "print_config: true",
        "config inside": "config: config.yaml",
        "out inside": "out: 5",
        "resume inside": "resume: x",
        "help inside": "help: true",
        "paper unknown": "paper: apga",
        "paper number": "paper: 5",
        "paper null": "paper: null",
        "paper list": "paper: [spars]",
        "paper other's key": "paper: rl4seg\n" + base,
    }.items():
        yield make_input(name, "any" if name in ("utf-16", "nul", "set tag", "binary tag") else "refuse", text)
    for key, values in {
        "zzz": [1],
        "env.zzz": [1],
        "ppo.zzz": [1],
        "seed": [-1, 2**32, 1.5, "x", None, [], True, float("nan"), float("inf"), 10**400],
        "name": [None, [], {}, 5, ""],
        "device": ["gpu", "", 5, "cuda:99", "meta", "cpu:7", "mps", "xla", "cuda"],
        "policy": ["x", None, 5],
        "checkpoint_every": [0, -1, 1.5, float("inf")],
        "examine_every": [-1, "x"],
        "ppo.total_timesteps": [-1, 0, "x", float("nan")],
        "ppo.num_envs": [0, -1, 3, 10**9],
        "ppo.n_steps": [0, -3],
        "ppo.batch_size": [0, 1, 7, -8],
        "ppo.n_epochs": [0, -1],
        "ppo.learning_rate": [-1, 1e6, float("nan"), float("inf"), "fast"],
        "ppo.gamma": [-0.1, 1.1, float("nan")],
        "ppo.gae_lambda": [2, float("nan")],
        "ppo.clip_range": [-1, float("nan")],
        "ppo.ent_coef": [-1, float("nan"), float("inf")],
        "ppo.vf_coef": [-1, float("nan")],
        "ppo.max_grad_norm": [-1, float("nan")],
        "env.cases": [[], ["nobody"], [5], "liver", [None], {"a": 1}, [""], ["../x"]],
        "env.split": ["x", 5, None],
        "env.data": ["", "/nonexistent", 5, None, "/dev/null", "\0", "x" * 5000],
        "env.grid": ["x"],
        "env.grid_shape": [
            [0, 1, 1],
            [-1, 4, 4],
            [1, 2],
            [1, 2, 3, 4],
            "x",
            [1.5, 2, 3],
            [10**6, 10**6, 10**6],
            [2**40, 1, 1],
        ],
        "env.window_size": [[0, 8, 4], [7, 8, 8], [1000, 1000, 1000], [-8, 8, 4]],
        "env.step": [0, -4, 1000, 1.5],
        "env.spacing_mm": [[0, 1, 1], [float("nan"), 1, 1], [float("inf"), 1, 1], [-1, 1, 1]],
        "env.hu_window": [
            [5, 5],
            [10, -10],
            [float("nan"), float("nan")],
            [float("-inf"), float("inf")],
            [0, float("inf")],
            [1],
            "x",
        ],
        "env.threshold": [-0.1, 1.1, float("nan"), "x"],
        "env.horizon": [0, -1, 10**12, 1.5],
        "env.gamma": [2, float("nan")],
        "env.tie_reward": [float("nan"), float("inf"), 1e300],
        "env.terminal_bonus": [float("nan"), float("inf"), 1e300],
        "env.mask_threshold": [-1, float("nan"), float("inf")],
        "env.lesion_rounds": [0, -1, 10**10],
        "env.phase": [[4, 0, 0], [-1, 0, 0], [9, 9, 9]],
        "env.n_agents": [0, 3, "2"],
        "env.opponent": ["x", 5],
        "env.reward": ["x", "shaped"],
        "env.start": ["x"],
        "env.action_set": ["x"],
        "env.obs_mode": ["x", "features"],
        "env.obs_size": [[0, 1, 1], [10**5, 10**5, 10**5]],
        "env.score_source": ["x", "os.system"],
        "env.score_engine": ["x"],
        "env.classifier": ["x", "/dev/null", "os.system"],
        "env.copies": [0, 2, 10**12],
        "env.implant_lesions": [
            {"number": [0, 1]},
            {"number": [3, 1]},
            {"diameter_mm": [float("nan"), 1]},
            {"edge_mm": float("nan")},
            5,
            "x",
        ],
        "env.cache_dir": ["\0", "/dev/null/x"],
        "evaluation.rollouts": [0, -1, 1.5],
        "evaluation.jitter_cells": [-1],
        "evaluation.tolerance_mm": [-1, float("nan"), float("inf")],
        "evaluation.pictures": [0, -1],
        "self_play.refresh_every": [0, -1],
        "self_play.initial_opponent": ["x"],
        "self_play.pool": ["x", 5],
        "self_play.pool_size": [0, 1.5],
        "self_play.snapshot_every": [0, 2],
        "self_play.priority_power": [-1, float("nan"), float("inf")],
        "ppo.algorithm": ["x", "lstm"],
        "ppo.lstm_size": [0, 1.5],
        "test.cases": [[], ["nobody"]],
        "test.split": ["x"],
        "validation.cases": [[], 5],
    }.items():
        for n, value in enumerate(values):
            text = yaml.safe_dump(merged(PHANTOM, {key: value}))
            short = repr(value)[:18]
            allowed = {
                ("ppo.learning_rate", 1e6): "refuse",
                ("name", ""): "any",
                ("name", 5): "any",
                ("env.split", None): "any",
                ("env.split", "x"): "any",
                ("test.split", "x"): "any",
                ("device", "cpu:7"): "any",
                ("env.reward", "shaped"): "any",
                ("env.obs_mode", "features"): "refuse",
                ("env.n_agents", "2"): "any",
                ("env.classifier", "x"): "any",
                ("env.classifier", "/dev/null"): "any",
                ("env.classifier", "os.system"): "any",
                ("env.cache_dir", "/dev/null/x"): "any",
                ("env.cache_dir", "\0"): "any",
            }
            must = (
                "any"
                if key in ("evaluation.tolerance_mm",) and value == float("inf")
                else allowed.get((key, value if isinstance(value, str | int | float) else None), "refuse")
            )
            if key in ("env.cache_dir", "env.spacing_mm"):
                must = "any" if key == "env.cache_dir" else must
            yield make_input(
                f"{key}.{n}.{short}",
                must,
                text,
                names=(key.rsplit(".", 1)[-1], "config.yaml", "grid", "rollout", "case", "implant"),
            )
    many = merged(PHANTOM, {"env.cases": ["?" * 50 + "*a" * 40]})
    yield make_input("cases pattern of many stars", "refuse", yaml.safe_dump(many), names=("case",))
    for n in range(40):
        noisy = bytearray(base.encode())
        for _ in range(rng.randint(1, 4)):
            noisy[rng.randrange(len(noisy))] = rng.choice(b"{}[]:,&*!|>'\"%@`#-? \n0123456789abcxyz\\")
        yield make_input(f"random.{n}", "any", bytes(noisy), names=("config.yaml", "", "error"))
    lines = base.splitlines()
    for n in range(20):
        kept = [line for line in lines if rng.random() > 0.2]
        yield make_input(f"lines lost.{n}", "any", "\n".join(kept), "--ppo.total_timesteps=8", names=("", "error"))
