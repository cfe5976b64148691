"""Examples of every command, which end its help."""

from __future__ import annotations

from collections.abc import Mapping

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "serve": (
        "mae serve",
        "mae serve --weights my-run --port 8080",
        "MAE_API_KEYS=secret mae serve --precision fp32 --http-workers 4",
    ),
    "embed": (
        "mae embed photographs/ -o vectors.npz",
        "mae embed 'photographs/**/*.jpg' shards/*.tar -o vectors/ --whiten --normalize",
        "mae embed s3://bucket/photographs/ -o vectors/ --changed",
    ),
    "index": (
        "mae index photographs/ -o photos.lance",
        "mae index vectors.parquet -o photos.lance",
    ),
    "search": (
        "mae search cat.jpg --index photos.lance",
        "mae search queries/ --index photos.lance -k 5 --format json --sheet found.png",
    ),
    "duplicates": (
        "mae duplicates --index photos.lance --sheet groups.png",
        "mae duplicates --index photos.lance --threshold 0.3 --format json",
    ),
    "classify": (
        "mae classify photographs/ --weights my-classes",
        "mae classify rose.jpg --weights my-classes --top-k 3 --json",
    ),
    "reconstruct": (
        "mae reconstruct coffee.jpg -o coffee.png --view panel --seed 7",
        "mae reconstruct coffee.jpg -o coffee.png --mask mask.png --json",
        "mae reconstruct coffee.jpg -o spread.png --draws 8 --view spread",
    ),
    "explain": (
        "mae explain rose.jpg -o rose.png --weights my-classes",
        "mae explain rose.jpg other.jpg -o rose.png --target similarity --json",
    ),
    "anomaly fit": (
        "mae anomaly fit normal/ -o paper.safetensors",
        "mae anomaly fit normal/ --weights my-run -o paper.safetensors --bank-tokens 4000",
    ),
    "anomaly test": (
        "mae anomaly test paper/ --weights paper.safetensors",
        "mae anomaly test paper/ --method reconstruction --passes 8 --seed 7",
    ),
    "info": ("mae info", "mae info --weights my-run --json"),
    "bench": ("mae bench", "mae bench --weights my-run --compare", "mae bench --parts all --json figures.json"),
    "compile": (
        "mae compile --weights my-run",
        "mae compile --precision int8 --calibrate photographs/",
    ),
    "convert": (
        "mae convert mae_visualize_vit_base.pth -o base.safetensors",
        "mae convert my-run -o half.safetensors --half --name birds",
        "mae convert my-run --to huggingface -o my-vit-mae",
    ),
    "pack": ("mae pack photographs/ -o photographs.pack",),
    "pretrain": (
        "mae pretrain photographs/ -o my-run --minutes 60 --init mae_tiny",
        "mae pretrain photographs/ -o my-run --epochs 100 --model mae_small",
        "mae pretrain -o my-run --resume",
    ),
    "evaluate": (
        "mae evaluate --data photographs/",
        "mae evaluate --weights my-run --train flowers/train --data flowers/test --sheet sheet.png",
        "mae evaluate --weights my-run --train photographs/ --fit",
    ),
    "finetune": (
        "mae finetune flowers/ -o my-classes --frozen",
        "mae finetune flowers/ --weights my-run -o my-classes --epochs 10",
        "mae finetune -o my-classes --resume",
    ),
}


def format_examples(command: str) -> str:
    """The end of a command's help: one example per line."""
    return "\n\n".join(["Examples:", *EXAMPLES[command]])
