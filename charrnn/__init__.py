"""charrnn: character-level recurrent language models (RNN, LSTM, GRU) for any text.

The way of the data, one direction, no circles::

    text file -> corpus -> vocabulary -> stream -> model -> training -> checkpoint
              -> evaluation | sampling | inspection

Axis letters used in every name: T time, B lanes (the batch), V vocabulary,
E embedding, H hidden, L layers, G gates, apart (GH) or stacked as rows (G);
N what has no letter of its own. Other letters are said where they are used.
"""

__version__ = "0.1.0"
