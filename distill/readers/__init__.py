"""Readers: annotation files of the field's data sets, turned into scenes and nothing else.

:func:`open_data` is the one entry (:func:`open_splits` reads every split). A data set is named by ``reader:path``
(``gazefollow:/data/gazefollow_extended``, ``vat:/data/videoattentiontarget``,
``folder:/pictures?heads=/boxes.csv``) or by its path alone, when what lies there says what it is. No picture is opened.
"""

from distill.readers.opening import READERS, open_data, open_splits

__all__ = ["READERS", "open_data", "open_splits"]
