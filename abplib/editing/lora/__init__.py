"""The LoRA that lets an editor read a box drawn on its source (appendix B.2), and its training."""
