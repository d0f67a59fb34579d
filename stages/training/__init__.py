"""Training with DeepSpeed, shared by pretraining and finetuning.

A training run supplies:

1. a module (`torch.nn.Module`) with
   - `student`, the `Student` inside it;
   - `forward(batch, is_valid) -> (loss, outputs)`: the loss to minimize, a scalar, and by name an
     `ObjectiveOutput` (`monitoring/metrics.py`) of each part of it, the same names for every batch.
     A batch that is not valid fills a rank's round and must leave no trace (its loss is multiplied
     by 0);
   - `begin_step(batches, num_micro_batches)`, called on every rank before the first forward pass of
     a step with the rank's valid batches of it and the number of those of all ranks;
   - `end_step()`, called on every rank after each optimizer step;
2. an optimizer: `AdamwSgd([*parameter_groups(...), ...])` (`optimizer.py`);
3. a source of batches (`data_loader.py`, `BatchSource`): `source[turn]` is a pure function of
   `turn.position`, called in worker processes. `ExampleBatches` makes one of numbered examples. A
   batch has `keys`, which name its samples in errors, and `to(device)`;
4. a `TrainingConfig` (`config.py`), the recipe's part with the fields that it adds;
5. perhaps a `Validation` (`loop.py`): `run(step)` gives values by name, `best` is the name of the
   one that decides, and `save_best(step)` is called when it was never better.

    with Watch() as watch:
        join_ranks()
        engine = make_engine(module, optimizer, config, torch.distributed.get_world_size())
        Loop(
            engine, source, config, title="finetune", seed=seed, out=out, watch=watch,
            device=current_device(), validation=validation,
        ).run()
        save_student(engine, module.student, tokenizer, out / "student", config.save_precision)

The loop does the rest: ranks, accumulation, precision, ZeRO, schedule, metrics, checkpoints, exact
resume on any number of ranks, signals, losses and gradients that are not finite, samples that
cannot be read, workers that cannot hand a batch over.
"""
