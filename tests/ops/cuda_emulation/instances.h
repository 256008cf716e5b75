// Every kernel that operators.cuh launches. INSTANCE: `template` where they are compiled, `extern template`
// where they are not to be.
#define INSTANCES_OF_NUMBER(acc)                                             \
  INSTANCE void plan_rois<acc>(Geometry, Parameters, const acc*, Plan<acc>); \
  INSTANCE void group_rois<acc>(Plan<acc>);

#define INSTANCES_OF_MAXIMUM(T, nhwc, cells)                                                           \
  INSTANCE void pool_maximum<T, nhwc, cells, T>(Pyramid<const T>, Plan<acc_t<T>>, Map<T>);             \
  INSTANCE void pool_maximum<T, nhwc, cells, int32_t>(Pyramid<const T>, Plan<acc_t<T>>, Map<int32_t>); \
  INSTANCE void scatter_maximum<T, nhwc, cells>(Geometry, Pyramid<T>, BinValues<T, nhwc>,              \
                                                BinValues<int32_t, nhwc>, Plan<acc_t<T>>);

#define INSTANCES_OF_LAYOUT(T, nhwc)                                                           \
  INSTANCE void scatter_average<T, nhwc>(Geometry, TileBlocks, Pyramid<T>, BinValues<T, nhwc>, \
                                         Plan<acc_t<T>>);                                      \
  INSTANCES_OF_MAXIMUM(T, nhwc, true)                                                          \
  INSTANCES_OF_MAXIMUM(T, nhwc, false)

#define INSTANCES_OF_TYPE(T, vector)                                                              \
  INSTANCE void pool_average_nhwc<T, 1>(Pyramid<const T>, Plan<acc_t<T>>, Map<T>);                \
  INSTANCE void pool_average_nhwc<T, vector>(Pyramid<const T>, Plan<acc_t<T>>, Map<T>);           \
  INSTANCE void pool_average_nchw<T>(Pyramid<const T>, Plan<acc_t<T>>, Map<T>);                   \
  INSTANCE void box_gradient<T>(Pyramid<const T>, Map<const T>, Plan<acc_t<T>>, bool, acc_t<T>*); \
  INSTANCES_OF_LAYOUT(T, true)                                                                    \
  INSTANCES_OF_LAYOUT(T, false)

INSTANCES_OF_NUMBER(float)
INSTANCES_OF_NUMBER(double)
INSTANCES_OF_TYPE(float, 4)
INSTANCES_OF_TYPE(double, 2)
INSTANCES_OF_TYPE(c10::BFloat16, 4)
INSTANCES_OF_TYPE(c10::Half, 4)
