"""Finetunes a student on a downstream task from its original files, and scores it.

Writes into `out`: `student/` (the best step, with the task's head), `last/`, `predictions.jsonl`,
the official submission, and `scores.json`, last. Goes on where it was stopped.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AddedToken, PreTrainedTokenizerFast

from sharding.writing.atomic import write_json, write_text
from stages.student.extend_vocabulary import extend
from stages.student.network import Student
from stages.student.processor import StudentProcessor
from stages.student.text.token_types import add_person_tags
from stages.student.text.tokenizer import load_tokenizer
from stages.training.checkpoints.full_state_dict import full_state_dict
from stages.training.data_loader import ExampleBatches
from stages.training.engine import choose_precision, current_device, join_ranks, make_engine
from stages.training.loop import Loop, Validation
from stages.training.monitoring.metrics import ObjectiveOutput
from stages.training.monitoring.stopping import Watch
from stages.training.optimizer import AdamwSgd, adamw_rule, parameter_groups
from stages.training.student_folder import save_student
from stages.transfer.config import FinetuneConfig
from stages.transfer.example import Example, group_by_images
from stages.transfer.finetuning.predict import predict, read_partial
from stages.transfer.finetuning.weights_digest import weights_digest
from stages.transfer.fixed_blocks import fixed_threads
from stages.transfer.heads.encoder_inputs import num_encoder_inputs
from stages.transfer.heads.input_cache import InputCache
from stages.transfer.outcomes import summarize
from stages.transfer.readers.records import ReaderError, TaskData
from stages.transfer.task_batch import TaskBatch, collate
from stages.transfer.task_config import TaskDataConfig
from stages.transfer.task_folder import save_head
from stages.transfer.tasks import TASKS
from stages.transfer.tasks.task import Task
from stages.transfer.toy_tasks.write import write_task_files

BETAS = (0.9, 0.98)
BEST = "best.json"


class TaskModule(nn.Module):
    """The student, the task's head, and its loss, as the shared loop wants them. Where the student
    does not learn it stays in evaluation mode, and what the head reads is kept."""

    def __init__(
        self, student: Student, head: nn.Module, task: Task, *, train_student: bool = True
    ) -> None:
        super().__init__()
        self.student, self.head, self.task = student, head, task
        self._kept = None if train_student else InputCache(student.pad_id)

    def forward(
        self, batch: TaskBatch, is_valid: bool = True
    ) -> tuple[torch.Tensor, dict[str, ObjectiveOutput]]:
        """The task's loss of a batch."""
        loss = self.task.loss(self._logits(batch), batch)
        return loss, {self.task.name: ObjectiveOutput(loss=loss, metrics={})}

    def _logits(self, batch: TaskBatch) -> torch.Tensor:
        if self._kept is None:
            return self.task.logits(self.student, self.head, batch)
        self.student.eval()
        return self.head(self._kept.of(batch, self._head_inputs))

    def _head_inputs(self, batch: TaskBatch) -> torch.Tensor:
        return self.task.head_inputs(self.student, batch)

    def begin_step(self, batches: Sequence[TaskBatch], num_micro_batches: int) -> None:
        """Nothing is needed of a step as a whole."""

    def end_step(self) -> None:
        """Nothing changes between steps."""


@dataclass(frozen=True, kw_only=True)
class _Make:
    """Groups of training examples -> their batch; in worker processes."""

    groups: Sequence[tuple[Example, ...]]
    processor: StudentProcessor
    task: Task
    cell_px: int

    def __call__(self, numbers: Sequence[int]) -> TaskBatch:
        examples = [example for number in numbers for example in self.groups[number]]
        return collate(
            examples,
            self.processor,
            lambda example: self.task.texts(example, training=True),
            cell_px=self.cell_px,
        )


def finetune_task(
    config: FinetuneConfig,
    *,
    seed: int,
    images: Path,
    student: Path,
    out: Path,
    on_step: Callable[[int], None] | None = None,
) -> None:
    """Train from the student folder, on any number of ranks. `images`: the run's image shards, from
    which the task's files are made where `config.data` names none. on_step: called after each step
    with the number of steps done.

    Raises ReaderError on files that do not fit, and what the shared loop raises.
    """
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    with Watch() as watch:
        join_ranks()
        config = choose_precision(config)
        data = _data(config, images, out / "data")
        kind = TASKS[str(config.task)]
        train, heldout = _read_examples(kind, data)
        task = kind(kind.prepare(train.examples) | _settings(config, data, student))
        torch.manual_seed(seed)
        net, head, processor = _load_with_head(student, task, train, config)
        module = TaskModule(net, head, task, train_student=config.train_student)
        groups = group_by_images(train.examples, max_texts=config.max_texts)
        make = _Make(groups=groups, processor=processor, task=task, cell_px=net.grid.cell_px)
        _freeze_unused(module, make([*range(min(2, len(groups)))]))
        engine = make_engine(
            module, _optimizer(module, config), config, torch.distributed.get_world_size()
        )
        run = _Run(
            engine=engine,
            module=module,
            processor=processor,
            examples=heldout.examples,
            config=config,
            out=out,
        )
        is_scored = _is_labelled(kind, heldout)
        validation = Validation(run=run.validate, best=task.score_name, save_best=run.save_best)
        Loop(
            engine,
            ExampleBatches(len(groups), make, batch_size=config.micro_batch_size, seed=seed),
            config,
            title=f"finetune {task.name}",
            seed=seed,
            out=out / "training",
            watch=watch,
            device=current_device(),
            on_step=on_step,
            validation=validation if is_scored else None,
        ).run()
        run.save("last")
        run.finish(train, heldout, is_scored)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """Predictions and student folders of a run on the way. All methods are collectives."""

    engine: Any
    module: TaskModule
    processor: StudentProcessor
    examples: Sequence[Example]
    config: FinetuneConfig
    out: Path

    def predict(self) -> dict[str, Any]:
        """Predictions of the examples by the network as it is, shared out over the ranks; they are
        kept in a folder of these weights, so that none of others is taken for one."""
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.module.eval()
        place = self._predictions(weights_digest(self.module))
        net, head = self._as_saved()
        predict_one = self.module.task.predictor(net, head, self.processor, self.examples)
        with fixed_threads(self.config.num_threads):
            predict(
                self.examples, predict_one, place, rank=rank, world_size=world_size, show=rank == 0
            )
        torch.distributed.barrier()
        found = predict(self.examples, predict_one, place, show=False)
        assert found is not None, "every rank has given its share"
        return found

    def _as_saved(self) -> tuple[Student, nn.Module]:
        """Copies of student and head with each weight by itself in memory, as they are after
        loading: DeepSpeed packs weights, by the number of ranks, and kernels add up in another
        order where a weight begins elsewhere. Under ZeRO 3 the network itself, as no rank has
        the full weights."""
        if self.engine.zero_optimization_partition_weights():
            return self.module.student, self.module.head
        return copy.deepcopy(self.module.student), copy.deepcopy(self.module.head)

    def _predictions(self, digest: str) -> Path:
        return self.out / "predictions" / digest[:16]

    def validate(self, step: int) -> Mapping[str, float]:
        """Scores by name."""
        scores = self.module.task.score(self.examples, self.predict())
        return {name: entry["value"] for name, entry in scores.items()}

    def save_best(self, step: int) -> None:
        """Keep this step."""
        self.save("student")
        digest = weights_digest(self.module)
        if torch.distributed.get_rank() == 0:
            write_json(self.out / BEST, {"step": step, "weights": digest})

    def save(self, name: str) -> None:
        """The student with the task's head, as a folder."""
        precision = self.config.save_precision
        weights = full_state_dict(self.engine, self.module.head, precision)
        save_student(
            self.engine,
            self.module.student,
            self.processor.tokenizer,
            self.out / name,
            precision,
            add=lambda folder: save_head(folder, self.module.task, weights),
        )

    def finish(self, train: TaskData, heldout: TaskData, is_scored: bool) -> None:
        """Predictions and submission of the best step, and its scores, last."""
        step: int | str = "last"
        if is_scored:
            best = json.loads((self.out / BEST).read_text())
            step, place = best["step"], self._predictions(best["weights"])
            found = read_partial(place)
            predictions = {example.id: found[example.id] for example in self.examples}
        else:
            self.save("student")
            predictions = self.predict()
        if torch.distributed.get_rank() == 0:
            lines = (json.dumps({"id": k, "prediction": p}) + "\n" for k, p in predictions.items())
            write_text(self.out / "predictions.jsonl", "".join(lines))
            task = self.module.task
            name, text = task.submission(self.examples, predictions)
            write_text(self.out / "submission" / name, text)
            scores = task.score(self.examples, predictions) if is_scored else {}
            write_json(
                self.out / "data.json",
                {
                    "num_train": len(train.examples),
                    "num_heldout": len(heldout.examples),
                    "left_out": {"train": train.dropped, "heldout": heldout.dropped},
                    "best_step": step,
                },
            )
            if is_scored:
                outcomes = task.outcomes(self.examples, predictions)
                found = summarize(self.examples, outcomes)
                write_json(self.out / "outcomes.json", found)
            write_json(self.out / "scores.json", scores)
        torch.distributed.barrier()


def new_words(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerFast, *, most: int
) -> list[str]:
    """The commonest words of the texts among those that the tokenizer cuts into pieces or does not
    know, at most so many; of words as common, the first by the alphabet."""
    if not most:
        return []
    split = tokenizer.backend_tokenizer
    counts: Counter[str] = Counter()
    for example in examples:
        for text in example.texts:
            for part in [text] if isinstance(text, str) else [said for _, said in text]:
                words = split.pre_tokenizer.pre_tokenize_str(split.normalizer.normalize_str(part))
                counts.update(word for word, _ in words)
    cut = [w for w in counts if tokenizer.tokenize(w) != [w]]
    return sorted(cut, key=lambda word: (-counts[word], word))[:most]


def load_for_task(
    folder: Path, task: Task, *, words: Sequence[str] = ()
) -> tuple[Student, StudentProcessor]:
    """A student from a folder, with the words and token types that the task needs."""
    net = Student.from_pretrained(str(folder), dtype=torch.float32)
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens([AddedToken(word, single_word=True, normalized=True) for word in words])
    if task.num_person_tags:
        add_person_tags(tokenizer, task.num_person_tags)
    own = net.config.bert.get("type_vocab_size", 2)
    num_words = max(len(tokenizer), net.embeddings.word_embeddings.num_embeddings)
    extend(net, vocab_size=num_words, num_token_types=max(own, task.num_token_types))
    return net, StudentProcessor.of(net, tokenizer)


def _load_with_head(
    folder: Path, task: Task, train: TaskData, config: FinetuneConfig
) -> tuple[Student, nn.Module, StudentProcessor]:
    """The student that finetuning starts from, with the task's new head."""
    words = new_words(train.examples, load_tokenizer(folder), most=config.new_words)
    net, processor = load_for_task(folder, task, words=words)
    if net.query_bank and config.train_student:
        net.query_bank.clear()  # its vectors are of the weights that are about to change
    head = task.make_head(net.config.bert["hidden_size"])
    task.start_head(head, net)
    return net, head, processor


def _data(config: FinetuneConfig, images: Path, out: Path) -> TaskDataConfig:
    """The task's files; the toy data set's, written by rank 0, where the recipe names none."""
    if config.data.train is not None:
        return config.data
    files: dict[str, Any] | None = None
    if torch.distributed.get_rank() == 0:
        files = write_task_files(str(config.task), images, out)
    shared = [files]
    torch.distributed.broadcast_object_list(shared)
    assert shared[0] is not None
    return replace(config.data, **shared[0])


def _settings(config: FinetuneConfig, data: TaskDataConfig, student: Path) -> dict[str, Any]:
    """What head and scores depend on beside the examples."""
    size = 0
    if config.inputs == "encoders":
        size = num_encoder_inputs(Student.config_class.from_pretrained(str(student)))
    return {
        "encoder_inputs": size,
        "num_folds": data.num_folds,
        "shortlist": data.shortlist,
        "text_premise": data.text_premise,
    }


def _read_examples(kind: type[Task], data: TaskDataConfig) -> tuple[TaskData, TaskData]:
    """Those to train on, and those to predict. ReaderError where the former have no labels."""
    train = _most(kind.read(data, "train"), data.num_train)
    if not _is_labelled(kind, train):
        raise ReaderError(
            f"finetune.data.train: got {data.path('', 'train')}, which has no labels, expected "
            "a file with them: it is what is trained on"
        )
    return train, _most(kind.read(data, "heldout"), data.num_heldout)


def _is_labelled(kind: type[Task], data: TaskData) -> bool:
    """Whether the answers are known; retrieval's are which texts belong to which picture."""
    return kind.name == "retrieval" or all(e.label is not None for e in data.examples)


def _most(data: TaskData, most: int | None) -> TaskData:
    return TaskData(examples=data.examples[:most], dropped=data.dropped)


def _freeze_unused(module: TaskModule, batch: TaskBatch) -> None:
    """Let what the task does not use (heads of other objectives) stay as it is: no decay, no state
    in the optimizer."""
    module.eval()
    loss, _ = module(batch)
    loss.backward()
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.requires_grad and parameter.grad is not None)
        parameter.grad = None
    module.train()


def _optimizer(module: TaskModule, config: FinetuneConfig) -> AdamwSgd:
    """AdamW, the head at a rate of its own where the recipe gives one."""
    head = config.lr if config.lr_head is None else config.lr_head
    groups = []
    for part, lr in ((module.student, config.lr), (module.head, head)):
        groups += parameter_groups(
            part.parameters(),
            weight_decay=config.weight_decay,
            decay_norms=False,
            rule=adamw_rule(lr, BETAS),
        )
    return AdamwSgd(groups)
