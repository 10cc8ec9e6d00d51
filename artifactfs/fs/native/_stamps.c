/*
 * Finds the files and folders that are not as they were: an lstat for each, without Python between.
 *
 * Git asks with each `git status`, and waits: a look from Python takes 4 us for each, of which 2 are
 * Python. Two threads share what is left, as the CPU of the git that waits is free.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
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

/* As many as one thread tells of. */
#define MOST_CHANGED 256

struct part {
    int folder;
    const char *at;
    const char *end;
    int count;
    const char *changed[MOST_CHANGED];
    /* A folder in whose place a symlink is now, as a path, and its length: what was in it is not
     * looked for behind the link. */
    const char *link;
    size_t link_length;
};

/* Also notes whether it is a link now. */
static int is_current(struct part *part, const char *path, const struct stamp *stamp)
{
    struct stat found;
    if (fstatat(part->folder, path, &found, AT_SYMLINK_NOFOLLOW) != 0)
        return 0;
    if (S_ISLNK(found.st_mode)) {
        part->link = path;
        part->link_length = strlen(path);
    }
    int64_t ctime_ns = (int64_t)found.st_ctim.tv_sec * 1000000000 + found.st_ctim.tv_nsec;
    return found.st_ino == stamp->ino && ctime_ns == stamp->ctime_ns;
}

/* Where the next one begins. Each ends with a NUL, and is longer than a stamp: see `is_whole`. */
static const char *behind(const char *at)
{
    at += sizeof(struct stamp);
    return at + strlen(at) + 1;
}

static int is_whole(const char *at, const char *end)
{
    while (at < end && (size_t)(end - at) > sizeof(struct stamp))
        at = behind(at);
    return at == end;
}

static int is_behind_link(const struct part *part, const char *path)
{
    return part->link != NULL && strncmp(path, part->link, part->link_length) == 0 &&
           path[part->link_length] == '/';
}

/* For the part that does not begin at the top: a link among the folders above its first path. */
static void look_above(struct part *part)
{
    char above[PATH_MAX];
    if (part->at == part->end)
        return;
    const char *path = part->at + sizeof(struct stamp);
    for (const char *slash = strchr(path, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        struct stat found;
        size_t length = slash - path;
        if (length >= sizeof above)
            return;
        memcpy(above, path, length);
        above[length] = '\0';
        if (fstatat(part->folder, above, &found, AT_SYMLINK_NOFOLLOW) == 0 &&
            S_ISLNK(found.st_mode)) {
            part->link = path;
            part->link_length = length;
            return;
        }
    }
}

static void *look(void *argument)
{
    struct part *part = argument;
    look_above(part);
    for (const char *at = part->at; at < part->end && part->count < MOST_CHANGED; at = behind(at)) {
        struct stamp stamp;
        const char *path = at + sizeof stamp;
        memcpy(&stamp, at, sizeof stamp);
        if (is_behind_link(part, path) || !is_current(part, path, &stamp))
            part->changed[part->count++] = at;
    }
    return NULL;
}

static void look_in_two(struct part *first, struct part *second)
{
    pthread_t thread;
    sigset_t all, before;
    const char *middle = first->at, *half = first->at + (first->end - first->at) / 2;
    while (middle < half)
        middle = behind(middle);
    second->at = middle;
    second->end = first->end;
    first->end = middle;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* the thread's: signals are for others */
    int started = pthread_create(&thread, NULL, look, second) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    look(first);
    if (started)
        pthread_join(thread, NULL);
    else
        look(second);
}

static int append_all(PyObject *list, const struct part *part, const char *start)
{
    for (int i = 0; i < part->count; i++) {
        PyObject *offset = PyLong_FromSsize_t(part->changed[i] - start);
        if (offset == NULL)
            return -1;
        int failed = PyList_Append(list, offset);
        Py_DECREF(offset);
        if (failed)
            return -1;
    }
    return 0;
}

static PyObject *told(const struct part *first, const struct part *second, const char *start)
{
    if (first->count == MOST_CHANGED || second->count == MOST_CHANGED)
        Py_RETURN_NONE;
    PyObject *list = PyList_New(0);
    if (list != NULL && (append_all(list, first, start) || append_all(list, second, start)))
        Py_CLEAR(list);
    return list;
}

static PyObject *changed(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer stamps;
    int folder;
    PyObject *packed; /* bytes, which nobody changes while other threads run */
    if (!PyArg_ParseTuple(arguments, "iS:changed", &folder, &packed) ||
        PyObject_GetBuffer(packed, &stamps, PyBUF_SIMPLE) != 0)
        return NULL;
    const char *start = stamps.buf, *end = start + stamps.len;
    if (stamps.len > 0 && (end[-1] != '\0' || !is_whole(start, end))) {
        PyBuffer_Release(&stamps);
        PyErr_SetString(PyExc_ValueError, "the last path does not end");
        return NULL;
    }
    struct part first = {.folder = folder, .at = start, .end = end}, second = {.folder = folder};
    Py_BEGIN_ALLOW_THREADS
    if (stamps.len < SHARED_FROM)
        look(&first);
    else
        look_in_two(&first, &second);
    Py_END_ALLOW_THREADS
    PyObject *list = told(&first, &second, start);
    PyBuffer_Release(&stamps);
    return list;
}

static PyMethodDef methods[] = {
    {"changed", changed, METH_VARARGS, NULL},
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
