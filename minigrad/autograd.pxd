# Types for the compiled engine: what autograd.py leaves open. Needed to build only.

cimport cython

from minigrad cimport graph


@cython.locals(
    pending=dict, leaves=dict, youngest="long long", others=list, slot=list, needed=list, node=graph.Node,
    i=Py_ssize_t, index=Py_ssize_t, anomaly=bint,
)
cpdef dict _walk(
    list edges, list grads, wanted, captured, bint retain_graph, bint create_graph, list left
)
