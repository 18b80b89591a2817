/* Makes the .h5 files of this folder that a library can write; the others are such files with bytes changed, found by fuzzing.
   cc make.c -I/usr/include/hdf5/serial -L/usr/lib/x86_64-linux-gnu/hdf5/serial -lhdf5 -o /tmp/make && /tmp/make */
#include <hdf5.h>

static hid_t create(const char* name) { return H5Fcreate(name, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT); }

static size_t pass_through(unsigned flags, size_t count, const unsigned values[], size_t bytes, size_t* size, void** data) {
  (void)flags, (void)count, (void)values, (void)size, (void)data;
  return bytes;
}

/* Packed by a filter that is no part of HDF5 (32015 is Zstandard's number). */
static void plugin_filter(void) {
  const H5Z_class2_t filter = {H5Z_CLASS_T_VERS, 32015, 1, 1, "zstd", NULL, NULL, pass_through};
  const hsize_t sizes[] = {4, 8};
  int ids[32] = {0};
  H5Zregister(&filter);
  hid_t file = create("plugin-filter.h5"), space = H5Screate_simple(2, sizes, NULL), properties = H5Pcreate(H5P_DATASET_CREATE);
  H5Pset_chunk(properties, 2, sizes);
  H5Pset_filter(properties, 32015, 0, 0, NULL);
  hid_t data = H5Dcreate2(file, "input_ids", H5T_STD_I32LE, space, H5P_DEFAULT, properties, H5P_DEFAULT);
  H5Dwrite(data, H5T_NATIVE_INT, H5S_ALL, H5S_ALL, H5P_DEFAULT, ids);
  H5Dclose(data), H5Pclose(properties), H5Sclose(space), H5Fclose(file);
}

/* A link inside of the file to a link into another one. */
static void soft_link(void) {
  hid_t file = create("soft-link.h5");
  H5Lcreate_external("target.h5", "input_ids", file, "elsewhere", H5P_DEFAULT, H5P_DEFAULT);
  H5Lcreate_external("target.h5", "/", file, "group", H5P_DEFAULT, H5P_DEFAULT);
  H5Lcreate_soft("/elsewhere", file, "input_ids", H5P_DEFAULT, H5P_DEFAULT);
  H5Fclose(file);
}

/* 64 GiB of ids, of which one chunk is in the file. */
static void mostly_absent(const char* name, int packed) {
  const hsize_t sizes[] = {1 << 20, 1 << 13}, chunk[] = {16, 16}, start[] = {0, 0};
  static long long ids[256];
  hid_t file = create(name), space = H5Screate_simple(2, sizes, NULL), properties = H5Pcreate(H5P_DATASET_CREATE);
  H5Pset_chunk(properties, 2, chunk);
  if (packed) H5Pset_deflate(properties, 9);
  hid_t data = H5Dcreate2(file, "input_ids", H5T_STD_I64LE, space, H5P_DEFAULT, properties, H5P_DEFAULT), memory = H5Screate_simple(2, chunk, NULL);
  H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, chunk, NULL);
  H5Dwrite(data, H5T_NATIVE_LLONG, memory, space, H5P_DEFAULT, ids);
  H5Dclose(data), H5Pclose(properties), H5Sclose(memory), H5Sclose(space), H5Fclose(file);
}

static void unwritten(void) {
  const hsize_t sizes[] = {4, 8};
  hid_t file = create("unwritten.h5"), space = H5Screate_simple(2, sizes, NULL);
  H5Dclose(H5Dcreate2(file, "input_ids", H5T_STD_I32LE, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
  H5Sclose(space), H5Fclose(file);
}

int main(void) {
  plugin_filter();
  soft_link();
  mostly_absent("mostly-absent.h5", 0);
  mostly_absent("mostly-absent-packed.h5", 1);
  unwritten();
  return 0;
}
