"""LoRA adapters as peft saves them: merged into their base, and written from runs of ours."""
