"""Values that a test is run with one after the other, where a test of its own for each takes longer to report
than to run."""

import functools
import inspect


def in_one_test(name, values):
    """As ``pytest.mark.parametrize`` of one argument, but all values are one test's, with the same fixtures.

    A test that skips itself would leave out the values that follow.
    """

    def decorate(test):
        @functools.wraps(test)
        def run(**arguments):
            for value in values:
                try:
                    test(**arguments, **{name: value})
                except Exception as error:
                    error.add_note(f"with {name} = {value!r}")
                    raise

        signature = inspect.signature(test)
        others = [p for p in signature.parameters.values() if p.name != name]
        run.__signature__ = signature.replace(parameters=others)
        return run

    return decorate
