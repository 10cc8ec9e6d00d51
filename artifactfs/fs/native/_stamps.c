/*
 * Looks whether files and folders are as they were: an lstat for each, without Python between them.
 *
 * Git asks with each `git status`, and waits: a look from Python takes 4 us for each, of which 2 are
 * Python. Two threads share what is left, as the CPU of the git that waits is free.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>

/* What stands before each path, in the machine's order of bytes: see `_stamps.pyi`. */
struct stamp {
    uint64_t ino;
    int64_t ctime_ns;
};

/* Bytes of stamps for which a second thread is worth its start of some 50 us. */
#define SHARED_FROM 16384

struct part {
    int folder;
    const char *at;
    const char *end;
    atomic_int *current;
};

static int is_current(int folder, const char *path, const struct stamp *stamp)
{
    struct stat found;
    if (fstatat(folder, path, &found, AT_SYMLINK_NOFOLLOW) != 0)
        return 0;
    int64_t ctime_ns = (int64_t)found.st_ctim.tv_sec * 1000000000 + found.st_ctim.tv_nsec;
    return found.st_ino == stamp->ino && ctime_ns == stamp->ctime_ns;
}

/* Where the first path at or behind `from` ends, of those that begin at `at`. */
static const char *path_end(const char *at, const char *from, const char *end)
{
    while (at < from && (size_t)(end - at) > sizeof(struct stamp)) {
        at += sizeof(struct stamp);
        at += strlen(at) + 1;
    }
    return at;
}

static void *look(void *argument)
{
    struct part *part = argument;
    const char *at = part->at;
    while (at < part->end && atomic_load_explicit(part->current, memory_order_relaxed)) {
        struct stamp stamp;
        int whole = (size_t)(part->end - at) > sizeof stamp;
        if (whole) {
            memcpy(&stamp, at, sizeof stamp);
            at += sizeof stamp;
        }
        if (!whole || !is_current(part->folder, at, &stamp))
            atomic_store(part->current, 0);
        at += strlen(at) + 1;
    }
    return NULL;
}

static void look_in_two(struct part *first)
{
    pthread_t thread;
    struct part second = *first;
    first->end = second.at = path_end(first->at, first->at + (first->end - first->at) / 2, first->end);
    if (pthread_create(&thread, NULL, look, &second) == 0) {
        look(first);
        pthread_join(thread, NULL);
    } else {
        look(first);
        look(&second);
    }
}

static PyObject *are_current(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer stamps;
    atomic_int current = 1;
    struct part all = {.current = &current};
    if (!PyArg_ParseTuple(arguments, "iy*:are_current", &all.folder, &stamps))
        return NULL;
    all.at = stamps.buf;
    all.end = all.at + stamps.len;
    if (stamps.len > 0 && all.end[-1] != '\0') {
        PyBuffer_Release(&stamps);
        PyErr_SetString(PyExc_ValueError, "the last path does not end");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    if (stamps.len < SHARED_FROM)
        look(&all);
    else
        look_in_two(&all);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&stamps);
    return PyBool_FromLong(current);
}

static PyMethodDef methods[] = {
    {"are_current", are_current, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_stamps",
    .m_size = 0,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__stamps(void)
{
    return PyModuleDef_Init(&definition);
}
