"""Progress of a build: the last lines are kept, each truncated."""

from flashpool.pool.progress_notes import LINE_LIMIT, LINES, ProgressNotes


def test_lines_keep_their_order():
    notes = ProgressNotes()
    assert notes.add("Resolving versions") == "Resolving versions"
    notes.add("Installing")
    assert notes.text() == b"Resolving versions\nInstalling\n"


def test_without_progress_nothing_is_written():
    assert ProgressNotes().text() == b""


def test_a_long_line_is_truncated_for_all_listeners():
    notes = ProgressNotes()
    kept = notes.add("x" * (LINE_LIMIT + 1))
    assert (len(kept), len(notes.text())) == (LINE_LIMIT, LINE_LIMIT + 1)


def test_the_last_lines_are_kept():
    notes = ProgressNotes()
    for number in range(LINES + 1):
        notes.add(str(number))
    lines = notes.text().decode().split()
    assert (lines[0], lines[-1], len(lines)) == ("1", str(LINES), LINES)


def test_lone_surrogates_do_not_raise():
    notes = ProgressNotes()
    notes.add("a lone \udc80 surrogate")
    assert b"\\udc80" in notes.text()
