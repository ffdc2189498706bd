"""The Qwen-VL family."""
