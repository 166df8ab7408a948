"""Runs of other trainers: their groups as plain records, written into the store."""
