"""Studies: many trainings, measured alike, that answer questions no single training can.

They stand on the training half and nothing stands on them. `arms` says what is trained, `measurement` what is measured
of it, `store` keeps every finished measurement, `runner` fills the store; `compare` and `best` are the questions.
"""
