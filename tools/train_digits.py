#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Train the embedded model: a fully ternary vit_digits, from scikit-learn's digits, on the CPU in minutes.

An FP32 teacher learns from the labels of the training split; the ternary student starts from its weights and learns
its probabilities through the integer grid (KL divergence only, as FTerViT does). What is written is the integer model,
and the accuracy that is printed is that of the integer predictor on the held-out split, which no step of training sees.

    python tools/train_digits.py                      writes host/tvhil/embedded/vit_digits.tvit
    python tools/train_digits.py --scale-mode per_token -o /tmp/per_token.tvit
    python tools/train_digits.py --ideal-scales       what the grid of weight scales costs (writes no model)

The teacher is kept in --work and reused; two runs with one seed on one machine write the same file.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from tvhil.datasets.digits import embedded_digits
from tvhil.errors import TvhilError
from tvhil.files import write_whole
from tvhil.models import VisionTransformer, load_model, model_config, save_checkpoint
from tvhil.packing import pack_vit, read_model
from tvhil.packing.format import ScaleMode
from tvhil.prediction import Predictor
from tvhil.quantization import QuantizationConfig, quantize_model, save_quantized, to_integer
from tvhil.quantization.train import EpochReport, TrainingOptions, classify, init_matrices, small_affine, train

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "host" / "tvhil" / "embedded" / "vit_digits.tvit"
AUGMENTATION = {"degrees": 12.0, "shift": 0.8, "scale": 0.1, "shear": 0.1}
TEACHER = TrainingOptions(epochs=250, batch=64, learning_rate=1e-3, label_smoothing=0.05)
STUDENT = TrainingOptions(epochs=150, batch=64, learning_rate=1e-3, weight_decay=0.0, recalibrations=8)

console = Console(stderr=True)


def run_training(
    title: str, model: VisionTransformer, options: TrainingOptions, **arguments: object
) -> list[EpochReport]:
    """`train` with a progress bar; the log."""
    log: list[EpochReport] = []
    with Progress(console=console) as progress:
        task = progress.add_task(title, total=options.epochs)

        def report(entry: EpochReport) -> None:
            log.append(entry)
            status = f"{title}: loss {entry.loss:.4f}, training accuracy {entry.train_accuracy:.2%}"
            progress.update(task, advance=1, description=status)

        train(model, options=options, report=report, **arguments)  # type: ignore[arg-type]
    return log


def brief(log: list[EpochReport]) -> list[list[float]]:
    """Epoch, loss and training accuracy, every tenth epoch and the last."""
    return [[e.epoch, round(e.loss, 5), round(e.train_accuracy, 4)] for e in log if e.epoch % 10 == 9 or e is log[-1]]


def main() -> None:
    """Train, convert, pack, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT, help="the model file")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "train_digits", help="checkpoints and log")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale-mode", choices=[m.name.lower() for m in ScaleMode], default="static")
    parser.add_argument("--ternarizer", default="twn")
    parser.add_argument("--teacher-epochs", type=int, default=TEACHER.epochs)
    parser.add_argument("--epochs", type=int, default=STUDENT.epochs, help="of the student")
    parser.add_argument("--ideal-scales", action="store_true", help="weight scales off the grid; writes no model")
    args = parser.parse_args()
    torch.set_num_threads(1)  # one thread adds in one order, and small matrices are no faster with more
    args.work.mkdir(parents=True, exist_ok=True)

    images, labels, held_out = embedded_digits()
    images = images[..., None]
    data = {"images": images[~held_out], "labels": labels[~held_out], "augment": small_affine(**AUGMENTATION)}
    test_images, test_labels = images[held_out], labels[held_out]

    def accuracy(classes: np.ndarray) -> float:
        return float((classes == test_labels).mean())

    config = model_config("vit_digits")
    teacher_options = TrainingOptions(**{**asdict(TEACHER), "epochs": args.teacher_epochs, "seed": args.seed})
    key = json.dumps([asdict(teacher_options), AUGMENTATION, config.to_json()])
    teacher_file = args.work / "teacher.safetensors"
    key_file = args.work / "teacher.json"
    if teacher_file.exists() and key_file.exists() and json.loads(key_file.read_text())["key"] == key:
        teacher = load_model(teacher_file)[0].eval()
        teacher_log = json.loads(key_file.read_text())["log"]
    else:
        teacher = VisionTransformer(config)
        init_matrices(teacher, args.seed)
        teacher_log = brief(run_training("teacher", teacher, teacher_options, **data))
        save_checkpoint(teacher_file, teacher.state_dict(), config)
        key_file.write_text(json.dumps({"key": key, "log": teacher_log}))
    teacher_accuracy = accuracy(classify(teacher, test_images))
    print(f"FP32 teacher            {teacher_accuracy:.2%} of {len(test_labels)} held-out digits")

    options = QuantizationConfig(args.ternarizer, ScaleMode[args.scale_mode.upper()], grid=not args.ideal_scales)
    student_options = TrainingOptions(**{**asdict(STUDENT), "epochs": args.epochs, "seed": args.seed})
    student = quantize_model(teacher, data["images"][::3], options)
    untrained = accuracy(classify(student, test_images))
    print(f"converted, not trained  {untrained:.2%}")
    log = run_training("student", student, student_options, teacher=teacher, **data)
    fake = accuracy(classify(student, test_images))
    print(f"fake-quantized          {fake:.2%}")
    save_quantized(args.work / f"student_{args.scale_mode}.safetensors", student)
    if args.ideal_scales:
        return

    recipe: dict[str, Any] = {
        "script": "tools/train_digits.py",
        "arguments": f"--seed {args.seed} --scale-mode {args.scale_mode} --ternarizer {args.ternarizer} "
        f"--teacher-epochs {args.teacher_epochs} --epochs {args.epochs}",
        "torch": torch.__version__,
        "teacher": asdict(teacher_options),
        "student": asdict(student_options),
        "augmentation": AUGMENTATION,
        "held_out_top1": {"fp32": teacher_accuracy, "converted": untrained, "fake_quantized": fake},
        "log": {"columns": ["epoch", "loss", "train_top1"], "teacher": teacher_log, "student": brief(log)},
    }
    vit = to_integer(student, name="vit_digits", class_names=tuple("0123456789"), recipe=recipe)
    integer = accuracy(Predictor(read_model(pack_vit(vit))).run(test_images).argmax(1))
    recipe["held_out_top1"]["integer"] = integer
    file = pack_vit(replace(vit, meta={**vit.meta, "recipe": recipe}))
    print(f"integer predictor       {integer:.2%}, {len(file):,} bytes packed")
    write_whole(args.output, file)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    try:
        main()
    except TvhilError as error:
        console.print(f"[red]{error}[/red]")
        sys.exit(int(error.exit_code))
    except KeyboardInterrupt:
        console.print("interrupted; a finished teacher is kept")
        sys.exit(130)
