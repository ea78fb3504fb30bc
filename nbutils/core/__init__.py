"""Rows, pairs, scores, texts and what is wrong with them: no file, no network, no model; imports nothing of ours."""
