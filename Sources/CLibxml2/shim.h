#ifndef VMHA_CLIBXML2_SHIM_H
#define VMHA_CLIBXML2_SHIM_H

// Debian's libxml2 pulls ICU's headers in, which clash with the ICU inside Swift's Foundation ("UErrorCode has different
// definitions"), depending on which module is read first. Nothing here uses libxml2's converters.
#include <libxml/xmlversion.h>
#undef LIBXML_ICU_ENABLED

#include <libxml/parser.h>
#include <libxml/relaxng.h>
#include <libxml/tree.h>
#include <libxml/xmlerror.h>
#include <libxml/xmlsave.h>

// xmlFree is a mutable global function pointer, which Swift may not touch from several threads.
static inline void vmha_xml_free(void *memory) { xmlFree(memory); }

#endif
