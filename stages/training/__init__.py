"""What pretrain and finetune share: engine, optimizer, schedule, checkpoints, metrics."""
