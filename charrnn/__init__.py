"""charrnn: character-level recurrent language models (RNN, LSTM, GRU) for any text.

Data flows one way, without cycles::

    text file -> corpus -> vocabulary -> stream -> model -> training -> checkpoint
              -> evaluation | sampling | inspection

Axis letters in names: T time, B lanes (the batch), V vocabulary, E embedding,
H hidden, L layers, G gates, mostly the stacked rows of all; N any other axis.
Further letters are explained where they are used.
"""

__version__ = "0.1.0"
