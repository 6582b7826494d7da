"""Molmo (0924): the pointing model that MolmoAct grew from, on MolmoAct's network; a teacher, never trained here."""
