/* A program that is no Python until it loads one: `embed LIBRARY ARGUMENTS...` behaves as `python ARGUMENTS...`.
 * The library comes by dlopen, long after the program was started, as in an application with a plug-in. */
#include <dlfcn.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    void *library;
    int (*run)(int, char **);

    if (argc < 2) {
        fprintf(stderr, "usage: embed LIBRARY [ARGUMENTS...]\n");
        return 2;
    }
    /* Extension modules find the interpreter's symbols only if they are global. */
    library = dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        return 2;
    }
    *(void **)&run = dlsym(library, "Py_BytesMain");
    if (!run) {
        fprintf(stderr, "%s\n", dlerror());
        return 2;
    }
    argv[1] = argv[0];
    return run(argc - 1, argv + 1);
}
