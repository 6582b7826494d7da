"""Molmo2: the pointing model under MolmoAct2, on its network; pictures and clips; a teacher, never trained here."""
